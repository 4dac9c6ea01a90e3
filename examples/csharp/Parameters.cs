using Azure;
using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>How an answer is chosen, and where it ends.</summary>
    public static async Task Parameters(ChatCompletionsClient client)
    {
        ChatCompletionsOptions options = new()
        {
            Messages = { new ChatRequestUserMessage("How many languages are in the world?") },
            Temperature = 0,
            NucleusSamplingFactor = 1, // top_p
            PresencePenalty = 0.1f,
            FrequencyPenalty = 0.8f,
            MaxTokens = 200,
            StopSequences = { "<|endoftext|>" },
            Seed = 7,
            ResponseFormat = new ChatCompletionsResponseFormatText(),
        };
        Response<ChatCompletions> response = await client.CompleteAsync(options);
        Console.WriteLine(response.Value.Content);
    }
}
