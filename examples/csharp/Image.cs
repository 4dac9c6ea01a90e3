using Azure;
using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>A question about an image.</summary>
    public static async Task Image(ChatCompletionsClient client)
    {
        string chart = Path.Combine(AppContext.BaseDirectory, "chart.png");
        ChatCompletionsOptions options = new()
        {
            Messages =
            {
                new ChatRequestUserMessage(
                    new ChatMessageTextContentItem("Which bar is the tallest?"),
                    new ChatMessageImageContentItem(chart, "image/png")),
            },
            MaxTokens = 200,
        };
        Response<ChatCompletions> response = await client.CompleteAsync(options);
        Console.WriteLine($"{response.Value.Role}: {response.Value.Content}");
        Console.WriteLine($"Prompt tokens: {response.Value.Usage.PromptTokens}");
    }
}
