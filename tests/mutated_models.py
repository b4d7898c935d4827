"""A small family of models, made from text, and the ways in which one is changed."""

import types

import torch

LINEAR = """
import torch
from torch import nn
SHIFT = {shift}
def bend(x, slope={slope}):
    {comment}
    return torch.where(x > 0, x, x * slope) + SHIFT {code}
class Block(nn.Module):
    gain = {gain}
    def __init__(self):
        super().__init__()
        {first}
        self.norm = nn.BatchNorm1d(8, eps=0.25)
        self.norm.running_var.fill_(0.75)
        self.drop = nn.Dropout(0.5)
        self.act = nn.LeakyReLU({negative})
        self.register_buffer("offset", torch.arange(8.0))
        self.options = {{"times": [1, {times}]}}
        self.register_buffer("extra", torch.ones(3))
    def forward(self, {name}):
        x = self.act(self.drop(self.norm({call}))) + self.offset
        return bend(x) * self.gain * self.options["times"][-1]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block().requires_grad_(False).eval()
        self.head = nn.Linear(8, {classes})
    def forward(self, {name}):
        {opaque}
        return self.head(self.block({name}))
"""
FORMS = {
    "images": ("self.layer = nn.Linear(48, 8)", "self.layer(x.flatten(1))", "x"),
    "convolved": (
        "self.layer = nn.Conv2d(3, 2, 2, stride=2)",
        "self.layer(x).flatten(1)",
        "x",
    ),
    "tokens": ("self.layer = nn.Embedding(16, 8)", "self.layer(input_ids).sum(1)", "input_ids"),
}


class Model:
    """A model that changes."""

    def __init__(self, rng, forms):
        self.rng = rng
        self.kind = rng.choice(forms)
        self.form = "tokens" if self.kind == "tokens" else "images"
        first, call, name = FORMS[self.kind]
        self.params = {
            "shift": 1, "slope": 0.5, "gain": 2, "negative": 0.5, "times": 2, "classes": 2, "code": "", "comment": "",
            "opaque": rng.choice(["pass", "if float(self.block.offset[1]) > 2: {name} = {name} * 0"]).format(name=name), "first": first, "call": call,
            "name": name,
        }  # fmt: skip
        self.seed = 0
        self.make()

    def make(self, keep=None):
        """Build the model from its text; weights are those of its seed, or kept."""
        user = types.ModuleType("user_model")
        exec(LINEAR.format(**self.params), vars(user))
        self.net = user.Net()
        generator = torch.Generator().manual_seed(self.seed)
        for parameter in self.net.block.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
        if keep is not None:
            self.net.block.load_state_dict(keep)

    def change(self):
        """Change something; say what."""
        name = self.rng.choice(list(CHANGES))
        CHANGES[name](self)
        return f"model: {name}"

    def set(self, name, *values):
        """Build it anew with another value in its text."""
        self.params[name] = self.rng.choice([value for value in values if value != self.params[name]])
        self.make(self.net.block.state_dict())


def one_number(model, parameter):
    flat = parameter.data.view(-1)
    flat[model.rng.randrange(len(flat))] += model.rng.choice([1, -1])


def ulp(model):
    flat = model.net.block.layer.weight.data.view(-1)
    at = model.rng.randrange(len(flat))
    flat[at] = flat[at] + 0.5  # the least step that keeps sums exact


def another_eps(model):
    norm = model.net.block.norm
    norm.eps = 3.5 - norm.eps
    norm.running_var.fill_(4 - norm.eps)


def another_forward(model):
    act = model.net.block.act
    act.forward = types.MethodType(lambda self, x: x * 2, act)


CHANGES = {
    "weight": lambda m: one_number(m, m.net.block.layer.weight),
    "half a step": ulp,
    "norm": lambda m: one_number(m, m.net.block.norm.weight),
    "mean": lambda m: one_number(m, m.net.block.norm.running_mean),
    "variance": lambda m: m.net.block.norm.running_var.fill_(m.rng.choice([4, 16]) - m.net.block.norm.eps),
    "eps": another_eps,
    "buffer": lambda m: one_number(m, m.net.block.offset),
    "buffer replaced": lambda m: setattr(m.net.block, "offset", m.net.block.offset + 1),
    "unused buffer": lambda m: m.net.block.extra.add_(1),
    "attribute": lambda m: setattr(m.net.block, "gain", m.rng.choice([1, 2, 4])),
    "deep attribute": lambda m: m.net.block.options["times"].__setitem__(1, m.rng.choice([1, 2, 4])),
    "slope of a module": lambda m: setattr(m.net.block.act, "negative_slope", m.rng.choice([0.25, 0.5, 2])),
    "global": lambda m: m.set("shift", 1, 2, 3),
    "default": lambda m: m.set("slope", 0.25, 0.5, 2),
    "class attribute": lambda m: m.set("gain", 1, 2, 4),
    "code": lambda m: m.set("code", "", "* 2", "+ 1"),
    "comment": lambda m: m.set("comment", "", "# said otherwise", '"""Said otherwise."""'),
    "head": lambda m: m.set("classes", 2, 3, 5),
    "head trained": lambda m: m.net.head.weight.data.add_(1),
    "rebuilt": lambda m: m.make(m.net.block.state_dict()),
    "another seed": lambda m: (setattr(m, "seed", m.rng.randrange(3)), m.make()),
    "hook": lambda m: m.net.block.layer.register_forward_hook(lambda module, args, output: output + 1),
    "forward of an instance": another_forward,
    "double and back": lambda m: m.net.double().float(),
    "mode of the head": lambda m: m.net.head.train(m.rng.random() < 0.5),
}
