"""llama.cpp's files: their header, the values in their blocks, and whose names."""
