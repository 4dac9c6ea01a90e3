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
// This client throws nothing: an error is a response like any other.
if (!isUnexpected(response)) {
    console.log(response.body.choices[0].message.content);
} else if (response.body.error.code === "content_filter") {
    console.log(`${response.body.error.code}: ${response.body.error.message}`);
} else {
    throw response.body.error;
}
