// Parameters that the Azure AI model inference API leaves to the model.

import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const response = await client.path("/chat/completions").post({
    headers: { "extra-parameters": "pass-through" },
    body: {
        messages: [{ role: "user", content: "How many languages are in the world?" }],
        max_tokens: 200,
        logprobs: true,
    },
});
if (isUnexpected(response)) {
    throw response.body.error;
}
for (const entry of response.body.choices[0].logprobs.content) {
    console.log(entry.token, Math.exp(entry.logprob).toFixed(3));
}
