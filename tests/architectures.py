"""Decoders of `transformers` that tests build."""

ALIKE = ("mistral", "qwen2", "gemma", "olmo", "starcoder2")
"""Built like Llama, with a difference each: biases, norms that add 1 to their weight or have none, other blocks."""
ARCHITECTURES = ("qwen3", "llama", "deepseek_v3", *ALIKE)
"""Taken the whole way, or to an engine at least."""
ALSO_ALIKE = ("ministral", "smollm3", "seed_oss", "arcee", "jais2")
NAMED_ALIKE = ("gemma2", "granite", "helium", "ernie4_5", "hunyuan_v1_dense")
"""Layers with Llama's names that compute something else."""
OTHER_LAYERS = (
    *("gpt2", "opt", "falcon", "gpt_neox", "phi", "phi3", "olmo2", "gemma3_text", "glm", "cohere"),
    *("mixtral", "gpt_oss"),
)
REFUSED = ("bert", "t5", "bart", "roberta", "mamba", "whisper", "xlnet", "bloom", "nougat")
"""No causal decoder of vectors, or no place for a recipe's settings."""
