// A question about an image.

import { readFile } from "node:fs/promises";
import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";

const chart = await readFile(new URL("../chart.png", import.meta.url));
const client = ModelClient(
    process.env.AZURE_INFERENCE_ENDPOINT,
    new AzureKeyCredential(process.env.AZURE_INFERENCE_CREDENTIAL),
    { allowInsecureConnection: true },
);
const response = await client.path("/chat/completions").post({
    body: {
        messages: [
            {
                role: "user",
                content: [
                    { type: "text", text: "Which bar is the tallest?" },
                    {
                        type: "image_url",
                        image_url: { url: `data:image/png;base64,${chart.toString("base64")}` },
                    },
                ],
            },
        ],
        max_tokens: 200,
    },
});
if (isUnexpected(response)) {
    throw response.body.error;
}
const { role, content } = response.body.choices[0].message;
console.log(`${role}: ${content}`);
console.log("Prompt tokens:", response.body.usage.prompt_tokens);
