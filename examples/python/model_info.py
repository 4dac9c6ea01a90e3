"""What the model is."""

from phi_edge import ChatCompletionsClient

with ChatCompletionsClient() as client:
    info = client.get_model_info()

print("Model name:", info.model_name)
print("Model type:", info.model_type)
print("Provider:", info.model_provider_name)
