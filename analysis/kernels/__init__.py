"""What the compilers make of the kernels' functions, to be run on a GPU."""
