"""Export trained models for other systems: numpy, safetensors, FAISS, and files and tables of vector databases."""
