using Azure.AI.Inference;

static partial class Examples
{
    /// <summary>What the model is.</summary>
    public static async Task ModelInfo(ChatCompletionsClient client)
    {
        var info = await client.GetModelInfoAsync();
        Console.WriteLine($"Model name: {info.Value.ModelName}");
        Console.WriteLine($"Model type: {info.Value.ModelType}");
        Console.WriteLine($"Provider: {info.Value.ModelProviderName}");
    }
}
