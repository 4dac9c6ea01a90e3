// What the model is.

import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const info = await client.path("/info").get();
if (isUnexpected(info)) {
    throw info.body.error;
}
console.log("Model name:", info.body.model_name);
console.log("Model type:", info.body.model_type);
console.log("Provider:", info.body.model_provider_name);
