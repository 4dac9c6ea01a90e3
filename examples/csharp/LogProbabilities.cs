using System.Text.Json;
using Azure;
using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>Parameters that the Azure AI model inference API leaves to the model.</summary>
    public static async Task LogProbabilities(ChatCompletionsClient client)
    {
        ChatCompletionsOptions options = new()
        {
            Messages = { new ChatRequestUserMessage("How many languages are in the world?") },
            MaxTokens = 200,
            AdditionalProperties = { ["logprobs"] = BinaryData.FromString("true") },
        };
        Response<ChatCompletions> response = await client.CompleteAsync(options);

        // The client has no names for what comes back, so it is read from the JSON.
        using JsonDocument answer = JsonDocument.Parse(response.GetRawResponse().Content);
        JsonElement choice = answer.RootElement.GetProperty("choices")[0];
        JsonElement entries = choice.GetProperty("logprobs").GetProperty("content");
        foreach (JsonElement entry in entries.EnumerateArray())
        {
            string? token = entry.GetProperty("token").GetString();
            double probability = Math.Exp(entry.GetProperty("logprob").GetDouble());
            Console.WriteLine($"{token} {probability:F3}");
        }
    }
}
