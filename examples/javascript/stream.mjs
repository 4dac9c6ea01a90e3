// An answer that is shown while it is made.

import ModelClient from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";
import { createSseStream } from "@azure/core-sse";

const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const response = await client.path("/chat/completions").post({
    body: {
        messages: [{ role: "user", content: "How many languages are in the world?" }],
        max_tokens: 200,
        stream: true, // without it, asNodeStream() reads the whole answer at once
    },
}).asNodeStream();
if (response.status !== "200") {
    throw new Error(`status ${response.status}`);
}
for await (const event of createSseStream(response.body)) {
    if (event.data === "[DONE]") {
        break;
    }
    for (const choice of JSON.parse(event.data).choices) {
        process.stdout.write(choice.delta?.content ?? "");
    }
}
process.stdout.write("\n");
