"""Times one FixMatch training step on WRN-28-2, ours and, where PyTorch is installed, the same step in PyTorch.

    python -m benchmarks.step [--batch_size=16] [--steps=5] [--torch_python=PATH]

One step is B labeled, 7 B weak and 7 B strong 32x32x3 images through WRN-28-2: forward, backward, SGD with
Nesterov momentum, EMA. Augmentation is not part of it (see benchmarks.augment): both sides get images that are
ready. PyTorch (channels_last, all cores) runs in a process of its own, by default in this Python, or in that of
--torch_python, so that it needs no place in the requirements. Rounds of the contestants alternate, each figure
is the median over them, and the ratios are taken within the round.
"""

MU = 7


def measure_ours(batch_size: int, policy: str, steps: int):
    """Yields images/s, one figure a round of `steps` steps; the first round is a warm-up."""

    from configs import fixmatch
    from train import mesh as mesh_lib
    from train import settings as settings_lib
    from train import step as step_lib

    mesh_lib.configure()
    config = fixmatch.get_config('cifar10,labels=40')
    config.batch_size = batch_size
    config.methods.fixmatch.weak_batch_norm = policy
    settings = settings_lib.from_config(config)
    trainer = step_lib.Trainer.create(settings, num_classes=10)
    ...
