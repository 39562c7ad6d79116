"""Writes files/zip.pth and files/legacy.pth, what torch.save makes of tensors.

  python tests/golden/make_files.py          torch 2.13.0 (CPU), NumPy 2.4.6, Python 3.11

What they are is written again, in NumPy, in test_files.py.
"""

import collections
import pathlib

import torch

FOLDER = pathlib.Path(__file__).parent / 'files'


def state_dict() -> collections.OrderedDict:
    """Returns the tensors, in an OrderedDict with the attribute that a module's state dict has."""
    tensors = torch.nn.BatchNorm2d(2).state_dict()  # weight, bias, running_mean, running_var, num_batches_tracked
    tensors['float32'] = torch.arange(6.0).reshape(2, 3) / 8
    tensors['float16'] = torch.arange(4).half() / 4
    tensors['bfloat16'] = torch.arange(-3, 3).bfloat16() / 2
    tensors['int64'] = torch.arange(3) + 2**40
    tensors['bool'] = torch.arange(4) % 2 == 0
    tensors['empty'] = torch.zeros(0, 3)
    tensors['transposed'] = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    shared = torch.arange(10, dtype=torch.int32)
    tensors['head'], tensors['tail'] = shared[:4], shared[4:].reshape(2, 3)
    tensors['columns'] = torch.arange(12.0).reshape(3, 4)[1:, 1::2]
    tensors['parameter'] = torch.nn.Parameter(torch.arange(3.0))
    return tensors


if __name__ == '__main__':
    torch.save({'state_dict': state_dict(), 'epoch': 3}, FOLDER / 'zip.pth')
    torch.save({'model': state_dict(), 'epoch': 3}, FOLDER / 'legacy.pth', _use_new_zipfile_serialization=False)
