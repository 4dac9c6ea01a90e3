// Runs an example, for instance `dotnet run -- chat`; `phi-edge serve` answers.

using Azure;
using Azure.AI.Inference;

Dictionary<string, Func<ChatCompletionsClient, Task>> examples = new()
{
    ["model_info"] = Examples.ModelInfo,
    ["chat"] = Examples.Chat,
    ["stream"] = Examples.Stream,
    ["parameters"] = Examples.Parameters,
    ["log_probabilities"] = Examples.LogProbabilities,
    ["content_safety"] = Examples.ContentSafety,
    ["image"] = Examples.Image,
};
if (args.Length != 1 || !examples.TryGetValue(args[0], out var example))
{
    Console.Error.WriteLine($"Name an example: {string.Join(", ", examples.Keys)}");
    return 2;
}

ChatCompletionsClient client = new(
    new Uri(Setting("AZURE_INFERENCE_ENDPOINT")),
    new AzureKeyCredential(Setting("AZURE_INFERENCE_CREDENTIAL")));
await example(client);
return 0;

static string Setting(string name) =>
    Environment.GetEnvironmentVariable(name)
    ?? throw new InvalidOperationException($"The environment variable {name} is not set.");
