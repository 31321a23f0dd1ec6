"""The strategies once more, slowly: plain loops over images, patches and cells, autograd for the derivative, and nothing
of the kit's own. It is what the fast ones are compared with. A latent picture is a dict from (image, patch) to a vector."""
import math
from itertools import product
import torch
import torch.nn.functional as F


def grid_of(size, patch, stride):
    "How many patches lie along each axis."
    return [len(range(0, s - p + 1, t)) for s, p, t in zip(size, patch, stride)]

def window(image, k, shape, patch, stride):
    "Patch number k of one image (C, *size), row by row."
    cell = list(product(*[range(n) for n in shape]))[k]
    for axis, (c, p, t) in enumerate(zip(cell, patch, stride)): image = image.narrow(axis + 1, c * t, p)
    return image

def norms(module): return [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

def backward(loss):
    "Unless nothing that learns had a part in the loss: all is blank, and the head frozen."
    if loss.requires_grad: loss.backward()

class mode:
    "A mode of the backbone by name, set module by module and put back at the end."
    def __init__(self, module, name): self.module, self.name = module, name
    def __enter__(self):
        self.was = [(m, m.training) for m in self.module.modules()]
        self.tracked = [(m, m.track_running_stats) for m in norms(self.module)]
        if self.name == 'eval': [m.train(False) for m in self.module.modules()]
        if self.name == 'frozen_stats': [m.train(False) for m in norms(self.module)]
        if self.name == 'batch_stats': [setattr(m, 'track_running_stats', False) for m in norms(self.module) if m.training]
    def __exit__(self, *error):
        for m, training in self.was: m.training = training
        for m, tracked in self.tracked: m.track_running_stats = tracked


class count_once:
    "Every norm's running statistics are put back after each call; at the end they are the mean of where the calls moved them."
    def __init__(self, *modules):
        self.start = {m: (m.running_mean.clone(), m.running_var.clone(), int(m.num_batches_tracked)) for module in modules for m in norms(module)}
        self.ends = {m: [] for m in self.start}
    def put(self, m, mean, var, n): m.running_mean, m.running_var, m.num_batches_tracked = mean.clone(), var.clone(), torch.tensor(n)   # new tensors: autograd may hold the old
    def call_ended(self):
        for m, start in self.start.items():
            if int(m.num_batches_tracked) > start[2]: self.ends[m].append((m.running_mean, m.running_var))
            self.put(m, *start)
    def batch_ended(self):
        for m, ends in self.ends.items():
            if ends: self.put(m, sum(e[0] for e in ends) / len(ends), sum(e[1] for e in ends) / len(ends), self.start[m][2] + 1)


class Reference:
    "One batch of images, and how a strategy learns from it."
    def __init__(self, backbone, head, images, labels, patch, stride, content, latent_dim):
        self.backbone, self.head, self.images, self.labels = backbone, head, images, labels
        self.patch, self.stride, self.latent_dim = patch, stride, latent_dim
        self.shape = grid_of(images.shape[2:], patch, stride)
        self.K, self.B = math.prod(self.shape), len(images)
        self.full = [(b, k) for b in range(self.B) for k in range(self.K) if content is None or content[b, k] > 0]
        self.parameters = [*backbone.parameters(), *head.parameters()]

    def encode(self, cells):
        "The latents of these cells, encoded together; a single patch has no batch statistics and takes the running ones."
        if not cells: return []
        x = torch.stack([window(self.images[b], k, self.shape, self.patch, self.stride) for b, k in cells])
        if x.ndim == 4: x = x.contiguous(memory_format=torch.channels_last)   # dropout draws in the order of memory
        with mode(self.backbone, 'frozen_stats' if len(cells) == 1 else 'train'): return list(self.backbone(x))

    def read(self, z):
        "The head's scores of a latent picture; cells that are not in it are zero."
        zero = self.images.new_zeros(self.latent_dim)
        rows = [torch.stack([z.get((b, k), zero) for k in range(self.K)], 1).reshape(self.latent_dim, *self.shape) for b in range(self.B)]
        return self.head(torch.stack(rows))

    def fill(self, cells, chunk, how):
        "These cells encoded without gradient, `chunk` times as many as there are images at a time."
        z, size = {}, chunk * self.B
        with torch.no_grad(), mode(self.backbone, how):
            for i in range(0, len(cells), size): z.update(zip(cells[i:i + size], self.encode(cells[i:i + size])))
        return z

    def descend(self, lr):
        "One step of plain gradient descent; the gradients are forgotten."
        for p in self.parameters:
            if p.grad is not None: p.data -= lr * p.grad
            p.grad = None

    def gradient_descent(self, lr):
        loss = F.cross_entropy(self.read(dict(zip(self.full, self.encode(self.full)))), self.labels)
        backward(loss)
        self.descend(lr)
        return [loss.item()]

    def exact_patchgd(self, lr, chunk, how='frozen_stats'):
        "The full gradient of a model whose patches are encoded part by part."
        z, size = {}, chunk * self.B
        once = count_once(self.backbone)
        with mode(self.backbone, how):
            for i in range(0, len(self.full), size):
                z.update(zip(self.full[i:i + size], self.encode(self.full[i:i + size])))
                once.call_ended()
        once.batch_ended()
        loss = F.cross_entropy(self.read(z), self.labels)
        backward(loss)
        self.descend(lr)
        return [loss.item()]

    def inner_iterations(self, z, sampled, lr, accumulate, reduction='mean'):
        "Algorithm 1 on a filled Z: which cells are sampled in which iteration is given, (J, B, K)."
        J, losses = len(sampled), []
        every = min(accumulate or J, J)
        once = count_once(self.backbone, self.head)
        groups = [list(range(J))[i:i + every] for i in range(0, J, every)]
        for group in groups:
            for j in group:
                cells = [(b, k) for b in range(self.B) for k in range(self.K) if sampled[j, b, k]]
                fresh = dict(zip(cells, self.encode(cells)))
                loss = F.cross_entropy(self.read({**z, **fresh}), self.labels)
                backward(loss / len(group) if reduction == 'mean' else loss)
                once.call_ended()
                losses.append(loss.item())
                z.update({c: v.detach() for c, v in fresh.items()})
            self.descend(lr)
        once.batch_ended()
        return losses

    def patchgd(self, lr, sampled, accumulate=None, fill='eval', chunk=8, reduction='mean'):
        first = [c for c in self.full if not sampled[0, c[0], c[1]]]
        return self.inner_iterations(self.fill(first, chunk, fill), sampled, lr, accumulate, reduction)

    def carry_patchgd(self, lr, sampled, bank, names, accumulate=None, refresh=1/8, fill='eval', chunk=8, reduction='mean'):
        "`bank`: a dict from (name, patch) to (latent in half precision, inner iteration in which it was written), and its `clock`."
        now, z, encode, changed = bank['clock'], {}, [], {}
        for b in range(self.B):
            mine = [k for i, k in self.full if i == b]
            known = {k: now + 1 - bank[names[b], k][1] for k in mine if (names[b], k) in bank}
            soon = {k for k in mine if sampled[:, b, k].any()}
            old = sorted((k for k in known if k not in soon), key=lambda k: -known[k])[:math.ceil(len(mine) * refresh)]
            fresh = [k for k in mine if k not in known or k in old]
            for k in known: z[b, k] = bank[names[b], k][0].to(self.images.dtype)
            encode += [(b, k) for k in mine if k in fresh and not sampled[0, b, k]]
            changed.update({(b, k): now + 1 for k in (*fresh, *soon)})
        z.update(self.fill(encode, chunk, fill))
        losses = self.inner_iterations(z, sampled, lr, accumulate, reduction)
        bank['clock'] = now + len(sampled)
        for b, k in changed:
            last = max((j for j in range(len(sampled)) if sampled[j, b, k]), default=None)
            age = len(sampled) if last is None else len(sampled) - 1 - last
            bank[names[b], k] = z[b, k].float().clamp(-65504, 65504).half(), bank['clock'] + 1 - age
        return losses
