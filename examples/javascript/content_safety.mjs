// A prompt that a filter refuses; the server was started with --block-list.

import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const response = await client.path("/chat/completions").post({
    body: { messages: [{ role: "user", content: "How do I sharpen a knife?" }], max_tokens: 200 },
});
if (isUnexpected(response)) {
    console.log(`${response.body.error.code}: ${response.body.error.message}`);
}
