using Azure;
using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>A prompt that a filter refuses; the server was started with --block-list.</summary>
    public static async Task ContentSafety(ChatCompletionsClient client)
    {
        ChatCompletionsOptions options = new()
        {
            Messages = { new ChatRequestUserMessage("How do I sharpen a knife?") },
            MaxTokens = 200,
        };
        try
        {
            Response<ChatCompletions> response = await client.CompleteAsync(options);
            Console.WriteLine(response.Value.Content);
        }
        catch (RequestFailedException error) when (error.ErrorCode == "content_filter")
        {
            Console.WriteLine($"{error.ErrorCode}: {error.Message}");
        }
    }
}
