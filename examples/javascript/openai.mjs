// The OpenAI SDK with `phi-edge serve`: its base URL ends with /v1.

import OpenAI from "openai";

const client = new OpenAI({
    baseURL: `${process.env.AZURE_INFERENCE_ENDPOINT}/v1`,
    apiKey: process.env.AZURE_INFERENCE_CREDENTIAL,
});
const stream = await client.chat.completions.create({
    model: "phi-3.5-vision",
    messages: [{ role: "user", content: "How many languages are in the world?" }],
    max_tokens: 200,
    stream: true,
});
for await (const chunk of stream) {
    process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
process.stdout.write("\n");
