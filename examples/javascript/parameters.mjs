// How an answer is chosen, and where it ends.

import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const response = await client.path("/chat/completions").post({
    body: {
        messages: [{ role: "user", content: "How many languages are in the world?" }],
        temperature: 0,
        top_p: 1,
        presence_penalty: 0.1,
        frequency_penalty: 0.8,
        max_tokens: 200,
        stop: ["<|endoftext|>"],
        seed: 7,
        response_format: { type: "text" },
    },
});
if (isUnexpected(response)) {
    throw response.body.error;
}
console.log(response.body.choices[0].message.content);
