// A question, its answer, and what both cost in tokens.

import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const response = await client.path("/chat/completions").post({
    body: {
        messages: [
            { role: "system", content: "You are a helpful assistant." },
            { role: "user", content: "How many languages are in the world?" },
        ],
        max_tokens: 200,
    },
});
if (isUnexpected(response)) {
    throw response.body.error;
}
console.log(response.body.choices[0].message.content);
console.log("Model:", response.body.model);
console.log("Prompt tokens:", response.body.usage.prompt_tokens);
console.log("Completion tokens:", response.body.usage.completion_tokens);
console.log("Total tokens:", response.body.usage.total_tokens);
