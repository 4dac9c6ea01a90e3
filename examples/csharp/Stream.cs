using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>An answer that is shown while it is made.</summary>
    public static async Task Stream(ChatCompletionsClient client)
    {
        ChatCompletionsOptions options = new()
        {
            Messages = { new ChatRequestUserMessage("How many languages are in the world?") },
            MaxTokens = 200,
        };
        using StreamingResponse<StreamingChatCompletionsUpdate> updates =
            await client.CompleteStreamingAsync(options);
        await foreach (StreamingChatCompletionsUpdate update in updates)
        {
            Console.Write(update.ContentUpdate);
        }
        Console.WriteLine();
    }
}
