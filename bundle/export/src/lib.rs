//! A bundle in the formats of others: Hugging Face, ONNX, NumPy, safetensors.
