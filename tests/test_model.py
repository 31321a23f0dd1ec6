"Z, heads and models."
import copy, json, pickle, threading, warnings
import pytest, timm, torch
from torch import nn
from patchgd_nb.head import PUBLISHED, SIZES, make_head
from patchgd_nb.model import BATCHNORM, MODE_LOCK, Normalize, PatchModel, WholeModel, compile_backbone, make_backbone, module_mode
from patchgd_nb.patches import PatchGrid
from patchgd_nb.training.checkpoint import Checkpoint, model_config
from patchgd_nb.zblock import ZBlock

HEADS = [*SIZES, *PUBLISHED, 'attention']


def tiny(grid, n_classes=3, latent_dim=4, head='smaller', chans=3):
    "A PatchModel whose backbone is one linear layer."
    pixels = chans * torch.tensor(grid.patch_size).prod()
    return PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(int(pixels), latent_dim)), grid, n_classes, latent_dim, head, in_chans=chans)


@pytest.mark.parametrize('row, col', [(0, 3), (2, 1), (4, 0)])
def test_z_is_not_transposed(row, col):
    "An image with one bright, off-diagonal patch is bright in that cell of Z, and nowhere else."
    grid = PatchGrid((40, 32), 8)
    image = torch.zeros(1, 3, 40, 32)
    image[:, :, row * 8:row * 8 + 8, col * 8:col * 8 + 8] = 1
    model = tiny(grid)
    Z = model.fill(image)[0]
    assert Z.shape == (4, 5, 4)
    differs = (Z - Z[:, 1, 3][:, None, None] if (row, col) != (1, 3) else 0).abs().sum(0) > 1e-6
    assert differs.nonzero().tolist() == [[row, col]]
    written = ZBlock.empty(1, 4, grid.shape).write(torch.tensor([[0, grid.index(row, col)]]), torch.ones(1, 4))
    assert written[0].sum(0).nonzero().tolist() == [[row, col]]


def test_write_sends_gradient_into_its_cells_only_and_counts_age():
    Z = ZBlock(torch.randn(2, 3, 2, 2))
    before, latents = Z.z.clone(), torch.randn(2, 3, requires_grad=True)
    weights = torch.randn(2, 3, 2, 2)
    (Z.write(torch.tensor([[0, 1], [1, 2]]), latents) * weights).sum().backward()
    assert torch.equal(latents.grad, torch.stack([weights[0, :, 0, 1], weights[1, :, 1, 0]]))
    assert torch.equal(Z.z[0, :, 0, 0], before[0, :, 0, 0]) and torch.equal(Z.z[0, :, 0, 1], latents[0])
    assert Z.age.tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]
    Z.write(torch.tensor([[0, 0]]), torch.randn(1, 3))
    assert Z.age.tolist() == [[0, 1, 2, 2], [2, 2, 1, 2]]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('shape', [(1,), (9,), (1, 1), (1, 7), (16, 16), (32, 32), (1, 1, 1), (2, 3, 4)], ids=str)
def test_batch_of_one_trains_with_every_head_and_grid(head, shape):
    module = make_head(head, 8, shape, 5).train()
    scores = module(torch.randn(1, 8, *shape))
    scores.sum().backward()
    assert scores.shape == (1, 5) and all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_unknown_head_is_refused():
    with pytest.raises(ValueError, match='huge'): make_head('huge', 8, (2, 2), 5)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_vit', 'mobilenetv2_050', 'resnet18'])
@pytest.mark.parametrize('batch, size', [(1, 64), (2, 128)])
def test_any_timm_backbone_encodes_and_classifies(name, batch, size):
    "Batch size 1 on a 1 x 1 grid included, in training mode."
    model = PatchModel(name, PatchGrid(size, 64), n_classes=6, latent_dim=16).train()
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    scores = model(images)
    scores.sum().backward()
    assert scores.shape == (batch, 6) and model.fill(images).shape == (batch, 16, *model.grid.shape)


def test_unknown_timm_name_suggests_a_near_one():
    with pytest.raises(ValueError, match='resnet') as e: PatchModel('resnet81', PatchGrid(64, 64), 6)
    assert 'resnet81' in str(e.value) and '\n' not in str(e.value)


def test_weights_that_cannot_be_fetched_end_in_one_sentence(monkeypatch):
    import timm
    def offline(*args, **kwargs): raise OSError('no route to the hub')
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(RuntimeError, match='pretrained=False') as e: PatchModel('resnet18', PatchGrid(64, 64), 6, pretrained=True)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_evaluation_depends_on_no_chunk(name):
    model = PatchModel(name, PatchGrid(192, 64), n_classes=6, latent_dim=8).double().eval()
    images, content = torch.randn(2, 3, 192, 192, dtype=torch.float64), (torch.rand(2, 9) > .4)
    with torch.no_grad(): scores = [model(images, content, chunk) for chunk in (1, 2, 5, 9, 100)]
    assert max((s - scores[0]).abs().max() for s in scores) < 1e-10
    with torch.enable_grad(): assert (model(images, content) - scores[0]).abs().max() < 1e-10


def test_blank_patches_hold_one_latent_in_training_and_evaluation():
    model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=8)
    images, content = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8), torch.tensor([[1., 0, 1, 0], [0, 0, 0, 0]])
    for mode in (model.train(), model.eval()):
        Z = mode.fill(images, content=content).flatten(2)
        assert (Z[0, :, [1, 3]] == 0).all() and (Z[1] == 0).all() and (Z[0, :, [0, 2]] != 0).any()
    changed = images.clone()
    changed[0, :, :64, 64:] = 9
    assert torch.equal(model(images, content), model(changed, content))


@pytest.mark.parametrize('mode, moves', [('eval', False), ('frozen_stats', False), ('batch_stats', False), ('train', True)])
def test_what_filling_does_to_batchnorm_is_a_named_choice(mode, moves):
    model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=8).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.fill(torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8), mode=mode)
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()) == moves
    assert all(m.training for m in model.modules())
    with pytest.raises(ValueError, match='odd'), module_mode(model, 'odd'): pass


def test_images_that_are_read_lazily_go_through_the_same_code():
    class Lazy:
        def __init__(self, pixels): self.pixels = pixels
        def read(self, r, c, h, w): return self.pixels[:, r:r + h, c:c + w].permute(1, 2, 0).numpy()
    images = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8)
    model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=8).eval()
    with torch.no_grad(): assert torch.equal(model([Lazy(i) for i in images]), model(images))


# --- modes and threads

class Pair:
    "Two threads, one inside a forward pass while the other tries to get in; each writes down the mode it met and the one it meant."
    def __init__(self, model):
        self.model, self.inside, self.second, self.met, self.errors = model, threading.Event(), threading.Event(), [], []
        model.backbone.register_forward_pre_hook(self.look)
        model.head.register_forward_pre_hook(self.look)

    def look(self, module, args):
        name, meant = threading.current_thread().name, self.meant[threading.current_thread().name]
        self.met.append((name, meant, [m.training for m in module.modules() if isinstance(m, (BATCHNORM, nn.modules.dropout._DropoutNd))]))
        if name == 'first' and not self.inside.is_set():
            self.inside.set()
            self.second.wait(.3)   # long enough for the second to get in, if nothing keeps it out
        if name == 'second': self.second.set()

    def run(self, first, second):
        "`first` and `second`: what to do, and whether dropout and BatchNorm are to be in training mode meanwhile."
        self.meant = dict(first=first[1], second=second[1])
        def go(what, before=None):
            try:
                if before: assert before.wait(10)
                what()
            except BaseException as e: self.errors.append(e)
        threads = [threading.Thread(target=go, name='first', args=[first[0]]), threading.Thread(target=go, name='second', args=[second[0], self.inside])]
        for t in threads: t.start()
        for t in threads: t.join(30)
        assert not any(t.is_alive() for t in threads) and not self.errors, self.errors
        return [(name, meant, modes) for name, meant, modes in self.met if any(m != w for m, w in zip(modes, meant))]


def modal(head='smaller'):
    torch.manual_seed(0)
    return PatchModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5), nn.Flatten(), nn.Linear(144, 8)), PatchGrid(16, 8), 4, 8, head).train()


@pytest.mark.parametrize('second, meant', [
    (lambda m, x: [m.encode(x[:, :, :8, :8]) for _ in range(3)], (True, True)),
    (lambda m, x: [m.encode(x[0, :, :8, :8]) for _ in range(3)], (False, True)),    # a single patch: by running statistics
    (lambda m, x: [m(x) for _ in range(3)], (True, True))], ids=['encode', 'one patch', 'forward'])
def test_threads_do_not_meet_each_others_modes(second, meant):
    "One fills Z again and again in mode 'eval', the other trains. Nothing runs in a mode that it did not mean, and the modes are as before."
    model, images = modal(), torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    pair = Pair(model)
    wrong = pair.run((lambda: [model.fill(images, chunk=1) for _ in range(3)], (False, False)), (lambda: second(model, images), meant))
    assert not wrong and len(pair.met) >= 15 and all(m.training for m in model.modules())


def test_a_whole_model_and_the_head_wait_for_modes_too():
    model, images = modal('published'), torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    z = torch.randn(2, 8, 2, 2)
    def in_eval():
        with torch.no_grad(), module_mode(model, 'eval'): return model.head(z)
    assert not Pair(model).run((in_eval, (False, False, False, False)), (lambda: model(images), (True, True, True, True)))
    whole = WholeModel('test_resnet', (32, 32), 3).train()
    whole.head = nn.Identity()
    def whole_in_eval():
        with torch.no_grad(), module_mode(whole, 'eval'): return whole.backbone(torch.randn(2, 3, 32, 32))
    assert not Pair(whole).run((whole_in_eval, (False,) * 99), (lambda: whole(torch.randn(2, 3, 32, 32)), (True,) * 99))
    assert all(m.training for m in model.modules()) and all(m.training for m in whole.modules())


def test_pixels_are_read_while_no_lock_is_held():
    "What a user's image does when it is read, another thread asking the model included, must not stop the world."
    model = modal()
    class Asks:
        def read(self, *window):
            free = []
            t = threading.Thread(target=lambda: free.append(MODE_LOCK.acquire(timeout=5) and MODE_LOCK.release() is None))
            t.start(); t.join()
            assert free == [True]
            return torch.zeros(8, 8, 3, dtype=torch.uint8)
    with torch.no_grad(): assert model([Asks()], chunk=1).shape == (1, 4)


def test_models_are_still_copied_and_pickled():
    model = modal('published')
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    x = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(again.eval()(x), model.eval()(x))


# --- pixels

WHITE = {torch.uint8: 255, torch.uint16: 65535, torch.uint32: 2**32 - 1, torch.bool: True}

@pytest.mark.parametrize('dtype', WHITE, ids=str)
@pytest.mark.parametrize('numbers', [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_white_is_white_in_every_unsigned_type(dtype, numbers):
    model = PatchModel(nn.Flatten(), PatchGrid(4, 2), 3, 12).to(numbers)
    latents = model.encode(torch.full((1, 3, 2, 2), WHITE[dtype], dtype=dtype))
    assert latents.dtype == numbers and torch.allclose(latents, torch.full((1, 12), 2., dtype=numbers), rtol=2e-7)    # (1 - 0.5) / 0.25, up to rounding
    assert torch.equal(model.encode(torch.zeros(1, 3, 2, 2, dtype=dtype)), torch.full((1, 12), -2., dtype=numbers))


def test_16_bits_and_8_bits_show_the_same_image():
    small = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    model = modal().eval()
    with torch.no_grad(): assert torch.allclose(model((small.int() * 257).to(torch.uint16)), model(small), atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_signed_pixels_are_refused_in_one_sentence(dtype):
    with pytest.raises(ValueError, match='no known range') as e: modal()(torch.zeros(1, 3, 16, 16, dtype=dtype))
    assert str(dtype) in str(e.value) and '\n' not in str(e.value) and str(e.value).endswith('.')


def test_floats_that_look_like_raw_pixels_are_warned_about_once_per_model():
    def warned(*batches):
        model = modal()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for b in batches: assert torch.equal(model.normalize(b), b)     # and taken as they are all the same
        return len(caught)
    raw, normal = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    assert warned(raw, raw, raw) == 1 and warned(normal, raw) == 0      # only the first batch is looked at
    assert warned(raw * 0) == warned(raw * 0 + 1) == warned(raw + .5) == warned(raw * 255) == warned(raw[:0]) == 0


def test_whose_mean_and_std():
    import torchvision
    imagenet = [.485, .456, .406], [.229, .224, .225]
    def of(*args, **kwargs): n = Normalize(*args, **kwargs); return n.mean.tolist(), n.std.tolist()
    net = torchvision.models.resnet18(num_classes=8)
    net.fc = nn.Linear(512, 8)
    class Own(torchvision.models.ResNet): pass
    own = Own(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=8)
    for backbone in (net, own): assert [pytest.approx(v) for v in imagenet] == list(of(backbone))
    assert of(nn.Flatten()) == ([.5] * 3, [.25] * 3) and of(nn.Flatten(), 1) == ([.5], [.25])
    assert of(net, mean=.1, std=(1, 2, 4)) == ([pytest.approx(.1)] * 3, [1., 2., 4.]) and of(make_backbone('test_resnet', 4), mean=(0, 0, 0), std=1) == ([0.] * 3, [1.] * 3)
    model = PatchModel(nn.Flatten(), PatchGrid(4, 2), 3, 12, mean=[0, 0, 1], std=.5, blank=255)
    assert model.blank_z(1)[0, 0].tolist() == pytest.approx([2.] * 8 + [0.] * 4, abs=3e-7)
    for wrong in (dict(mean=(1, 2)), dict(std=0.), dict(std=(1, 1, -1)), dict(std=(1, 1))):
        with pytest.raises(ValueError, match=next(iter(wrong))) as e: Normalize(net, **wrong)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')


# --- timm: names with a source, files, arguments

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A small model of five classes as timm saves it, and one that is built for one size."
    out = {}
    for name, kwargs in dict(test_resnet={}, test_vit=dict(img_size=64)).items():
        torch.manual_seed(5)
        out[name] = timm.create_model(name, num_classes=5, **kwargs), tmp_path_factory.mktemp(name)
        timm.models.save_for_hf(*out[name], safe_serialization=True)
    return out


def same_weights(net, own, count=5):
    "Every weight but the classifier's, and those that are resized with the input."
    theirs = {n: p for n, p in own.named_parameters() if not n.startswith(('fc', 'head')) and n != 'pos_embed'}
    return len(theirs) >= count and all(torch.equal(net.get_parameter(n), p) for n, p in theirs.items())


@pytest.mark.parametrize('name, size', [('test_resnet', 64), ('test_vit', 64), ('test_vit', 96)])
def test_a_model_in_a_folder(saved, name, size):
    own, folder = saved[name]
    model = PatchModel(f'local-dir:{folder}', PatchGrid(size, size), 6, 16, pretrained=True)
    assert same_weights(model.backbone, own) and model.encode(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 16)
    assert not same_weights(PatchModel(f'local-dir:{folder}', PatchGrid(size, size), 6, 16).backbone, own)


def test_a_model_on_the_hub_and_no_way_to_it(saved, monkeypatch):
    own, folder = saved['test_vit']
    monkeypatch.setattr(timm.models._hub, 'hf_hub_download', lambda repo, filename=None, **kwargs: str(folder / filename) if repo == 'a/b' else None)
    monkeypatch.setattr(timm.models._hub, 'load_state_dict_from_hf', None)   # not asked for by this name
    monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', lambda repo, **kwargs: timm.models.load_state_dict(str(folder / 'model.safetensors')))
    net = make_backbone('hf-hub:a/b', 16, (64, 64), pretrained=True)
    assert same_weights(net, own) and net(torch.zeros(1, 3, 64, 64)).shape == (1, 16) and net.made_as == dict(name='hf-hub:a/b')
    def offline(*args, **kwargs): raise OSError('no route\nto the hub')
    monkeypatch.setattr(timm.models._hub, 'hf_hub_download', offline)
    with pytest.raises(RuntimeError, match='hf-hub:a/b could not be read .no route to the hub.*internet') as e: make_backbone('hf-hub:a/b', 16)
    assert '\n' not in str(e.value) and str(e.value).endswith('.')


@pytest.mark.parametrize('name, size', [('test_resnet', 64), ('test_vit', 96)])
@pytest.mark.parametrize('n_out', [5, 16, 1000])
def test_weights_from_a_file(saved, name, size, n_out):
    own, folder = saved[name]
    state = torch.get_rng_state()
    net = make_backbone(name, n_out, (size, size), pretrained=str(folder / 'model.safetensors'))
    assert same_weights(net, own) and net(torch.zeros(1, 3, size, size)).shape == (1, n_out)
    assert same_weights(WholeModel(name, (size, size), 3, folder / 'model.safetensors').backbone, own)
    torch.set_rng_state(state)
    plain = make_backbone(name, n_out, (size, size))
    assert torch.equal(plain.get_classifier().weight, net.get_classifier().weight)    # the classifier is a new one, not the file's


def test_a_file_that_does_not_fit_is_refused(saved, tmp_path):
    "timm alone raises nothing and goes on with random weights."
    file, half = saved['test_resnet'][1] / 'model.safetensors', tmp_path / 'half.pth'
    weights = timm.models.load_state_dict(str(file))
    torch.save({n: w for n, w in weights.items() if not n.startswith('layer3')}, half)
    (tmp_path / 'text.pth').write_text('no weights')
    for name, given, says in [('test_vit', file, 'holds no weights for'), ('test_resnet', half, 'holds no weights for layer3'), ('resnet18', file, 'do not fit'),
                              ('test_resnet', tmp_path / 'text.pth', 'cannot be read'), ('test_resnet', tmp_path / 'absent.pth', 'cannot be read')]:
        with pytest.raises(ValueError, match=says) as e: make_backbone(name, 8, (64, 64), pretrained=given)
        assert '\n' not in str(e.value) and str(e.value).endswith('.') and given.name in str(e.value)


def test_what_cannot_be_built_is_said_in_one_sentence(saved, tmp_path):
    (tmp_path / 'config.json').write_text('{"architecture": "resnet9999", "pretrained_cfg": {}}')
    for error, says, make in [(RuntimeError, 'config.json', lambda: make_backbone('local-dir:/nowhere', 8)), (ValueError, 'resnet9999', lambda: make_backbone(f'local-dir:{tmp_path}', 8)),
                              (ValueError, 'drop_pat_rate', lambda: make_backbone('test_resnet', 8, drop_pat_rate=.1)), (ValueError, 'num_classes', lambda: make_backbone('test_resnet', 8, num_classes=3)),
                              (ValueError, 'did you mean', lambda: make_backbone('resnet81', 8)), (ValueError, 'a module already', lambda: PatchModel(nn.Flatten(), PatchGrid(4, 2), 3, 12, backbone_kwargs=dict(x=1)))]:
        with pytest.raises(error, match=says) as e: make()
        assert '\n' not in str(e.value) and str(e.value)[-1] in '.?'


def test_arguments_pass_through_to_timm():
    drop = PatchModel('test_resnet', PatchGrid(64, 32), 3, 8, backbone_kwargs=dict(drop_path_rate=.5)).backbone
    assert [m.drop_prob for m in drop.modules() if type(m).__name__ == 'DropPath'] and not [m for m in make_backbone('test_resnet', 8).modules() if type(m).__name__ == 'DropPath']
    scaled = make_backbone('test_vit', 8, (64, 64), init_values=1e-3)
    assert any(type(m).__name__ == 'LayerScale' for m in scaled.modules())
    anysize = make_backbone('test_vit', 8, (64, 64), dynamic_img_size=True)
    assert anysize(torch.zeros(1, 3, 64, 64)).shape == anysize(torch.zeros(1, 3, 96, 96)).shape == (1, 8)
    assert WholeModel('test_resnet', (32, 32), 3, backbone_kwargs=dict(drop_path_rate=.5)).backbone.made_as == dict(name='test_resnet', drop_path_rate=.5)


def test_a_checkpoint_records_the_name_and_the_arguments_and_loads_without_comparing_them(saved):
    own, folder = saved['test_resnet']
    name = f'local-dir:{folder}'
    model = PatchModel(name, PatchGrid(64, 32), 3, 8, backbone_kwargs=dict(drop_path_rate=.5, act_layer=nn.ReLU))
    config = json.loads(json.dumps(model_config(model)))
    assert config['backbone'] == 'test_resnet' and config['backbone_name'] == name and config['backbone_arguments']['drop_path_rate'] == .5
    plain = PatchModel('test_resnet', PatchGrid(64, 32), 3, 8)
    assert model_config(plain)['backbone_name'] == 'test_resnet' and model_config(plain)['backbone_arguments'] == {} and model_config(tiny(PatchGrid(8, 4)))['backbone_name'] is None
    Checkpoint(folder, config, None, dict(model=model.state_dict())).load_into(plain)          # from another place, without its drop path
    old = {k: v for k, v in config.items() if k not in ('backbone_name', 'backbone_arguments')}
    Checkpoint(folder, old, None, dict(model=model.state_dict())).load_into(plain)
    with pytest.raises(ValueError, match='backbone test_resnet there, test_vit here'): Checkpoint(folder, config, None, {}).load_into(PatchModel('test_vit', PatchGrid(64, 32), 3, 8))


def test_a_refused_compiler_leaves_the_backbone_as_it_was(monkeypatch):
    model = modal().eval()
    x = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    before = model.encode(x)
    def no_compiler(*args): raise RuntimeError('no compiler')
    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: no_compiler)
    with pytest.raises(RuntimeError, match='no compiler'): compile_backbone(model)
    assert torch.equal(model.encode(x), before)
