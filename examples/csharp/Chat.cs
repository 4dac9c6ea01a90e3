using Azure;
using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>A question, its answer, and what both cost in tokens.</summary>
    public static async Task Chat(ChatCompletionsClient client)
    {
        ChatCompletionsOptions options = new()
        {
            Messages =
            {
                new ChatRequestSystemMessage("You are a helpful assistant."),
                new ChatRequestUserMessage("How many languages are in the world?"),
            },
            MaxTokens = 200,
        };
        Response<ChatCompletions> response = await client.CompleteAsync(options);
        Console.WriteLine(response.Value.Content);
        Console.WriteLine($"Model: {response.Value.Model}");
        Console.WriteLine($"Prompt tokens: {response.Value.Usage.PromptTokens}");
        Console.WriteLine($"Completion tokens: {response.Value.Usage.CompletionTokens}");
        Console.WriteLine($"Total tokens: {response.Value.Usage.TotalTokens}");
    }
}
