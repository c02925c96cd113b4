"""A first call of PyTorch's vector functions on one thread, so that every call gives the same bytes."""

import torch


def settle_vector_functions() -> None:
    """Let the library behind exp, tanh and others choose its code before several threads ask for it at once.

    MKL 2024.2 chooses at its first call, and threads that come at the same moment can get code of half the precision for that one
    call: with PyTorch 2.13 on two threads, 12 of 400 processes had errors of 4e-5 in their first tanh, and none of 600 after this.
    """
    torch.exp(torch.zeros(8))
