//! Hugging Face checkpoint folders: config.json, safetensors, tokenizer files.
