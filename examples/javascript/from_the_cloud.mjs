// Code for Azure's endpoint, as articles about it write it; the client's last argument is new, and
// only a server without https needs it.

import { readFile } from "node:fs/promises";
import ModelClient from "@azure-rest/ai-inference";
import { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const client = new ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const picture = await readFile(new URL("../chart.png", import.meta.url));
const response = await client.path("/chat/completions").post({
    headers: { "extra-params": "pass-through" },
    body: {
        messages: [
            {
                role: "user",
                content: [
                    { type: "text", text: "Which bar is the tallest?" },
                    {
                        type: "image_url",
                        image: { url: `data:image/png;base64,${picture.toString("base64")}` },
                    },
                ],
            },
        ],
        presence_penalty: "0.1",
        frequency_penalty: "0.8",
        logprobs: true,
    },
});
if (isUnexpected(response)) {
    throw response.body.error;
}
const [choice] = response.body.choices;
console.log(`${choice.message.role}: ${choice.message.content}`);
console.log("Tokens with a log probability:", choice.logprobs.content.length);
