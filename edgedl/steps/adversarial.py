"""Trains a generator against a discriminator that learns beside it, and is not shipped."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from edgedl.core import Model, Step, Task, UsageError

if TYPE_CHECKING:
    from torch import nn


class Adversarial(Step):
    """In turn, a discriminator learns to tell the task's `real` images from made ones, and the generator to mislead it.

    Both learn by Adam as A. Radford et al. (2016) set it, on noise that is drawn anew each time; real images are called
    real by 0.9 only (T. Salimans et al., Improved Techniques for Training GANs, 2016). What is kept is the running mean
    of the generator's weights that validates best, of every fifth epoch.
    Source: I. Goodfellow et al., Generative Adversarial Networks, 2014.
    """

    use: str = "adversarial"
    epochs: PositiveInt = 50
    """How often both go over the real images."""
    batch_size: PositiveInt = 64
    """Images of one step of training."""
    lr: PositiveFloat = 5e-4
    """The learning rate of both."""
    widths: tuple[PositiveInt, ...] = (32, 64)
    """Channels of the judge's convolutions."""

    compresses: ClassVar[bool] = False

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` for a task without real images."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as distance

        from edgedl import checkpoint, progress
        from edgedl.measure import evaluate
        from edgedl.torch_session import TorchSession

        arrays = task.arrays("train")
        if "real" not in arrays or len(task.inputs) != 1:
            raise UsageError(f"adversarial: task {task.use} has no noise and real images; task generation has")
        ((_, spec),) = task.inputs.items()
        real = torch.from_numpy(arrays["real"])
        course = checkpoint.Course(self.label, model.net.state_dict())
        net, judge = copy.deepcopy(model.net), _discriminator(tuple(real.shape[1:]), self.widths)
        running = torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)  # type: ignore[no-untyped-call]
        mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=running, use_buffers=True)
        rules = [torch.optim.Adam(part.parameters(), lr=self.lr, betas=(0.5, 0.999)) for part in (net, judge)]
        sign = 1 if task.metric.higher_is_better else -1
        done, best, kept = 0, -float("inf"), copy.deepcopy(net.state_dict())
        history: list[dict[str, Any]] = []
        learning: dict[str, Any] = {
            "net": net,
            "judge": judge,
            "mean": mean,
            "rule": rules[0],
            "judge's rule": rules[1],
        }
        if (reached := course.reached()) is not None:
            done, best, kept, history = (reached[name] for name in ("done", "best", "kept", "history"))
            for name, part in learning.items():
                part.load_state_dict(reached[name])

        def state() -> dict[str, Any]:
            parts = {name: part.state_dict() for name, part in learning.items()}
            return parts | {"done": done, "best": best, "kept": kept, "history": history}

        with progress.stage(self.label, self.epochs, before=done) as advance:
            for epoch in range(done + 1, self.epochs + 1):
                net.train()
                losses = []
                for chosen in torch.split(torch.randperm(len(real)), self.batch_size):
                    if len(chosen) < 2:  # batch norms need more
                        continue
                    made = net(torch.randn(len(chosen), *spec.shape))
                    says_real, says_made = judge(real[chosen]), judge(made.detach())
                    told = distance(says_real, torch.full_like(says_real, 0.9))
                    told = told + distance(says_made, torch.zeros_like(says_made))
                    rules[1].zero_grad()
                    told.backward()  # type: ignore[no-untyped-call]
                    rules[1].step()
                    says_made = judge(made)
                    misled = distance(says_made, torch.ones_like(says_made))
                    rules[0].zero_grad()
                    misled.backward()  # type: ignore[no-untyped-call]
                    rules[0].step()
                    mean.update_parameters(net)
                    losses.append((misled.item(), told.item()))
                generator, discriminator = (sum(values) / len(losses) for values in zip(*losses, strict=True))
                said = f"loss {generator:.3f} against {discriminator:.3f}"
                if epoch % 5 == 0 or epoch == self.epochs:
                    score = evaluate(TorchSession(mean.module, task), task, "validation").score
                    history.append({"epoch": epoch, "loss": generator, "discriminator": discriminator, "score": score})
                    said += f"  {task.metric.name} {score:.4f}"
                    if sign * score > best:
                        best, kept = sign * score, copy.deepcopy(mean.module.state_dict())
                done = epoch
                course.keep(state)
                advance(1, said)
        net.load_state_dict(kept)
        return model.after(self, {"epochs": history}, net=net.eval())


def _discriminator(shape: tuple[int, ...], widths: tuple[int, ...]) -> nn.Module:
    """Images (N, C, H, W) -> how real they are, a logit (N, 1): convolutions of stride 2 with leaky ReLU."""
    from torch import nn

    layers: list[nn.Module] = []
    channels, height, width = shape
    for wide in widths:
        layers += [nn.Conv2d(channels, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout2d(0.2)]
        channels, height, width = wide, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, 1))
