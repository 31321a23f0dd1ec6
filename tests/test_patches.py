"PatchGrid: geometry for signals, pictures and volumes alike."
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from patchgd_nb.patches import PatchGrid, plot_grid


@st.composite
def grids(draw, max_axes=3):
    axes = [(n, p, draw(st.integers(1, p))) for n, p in draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=max_axes))]
    return PatchGrid(tuple((n - 1) * t + p for n, p, t in axes), tuple(p for _, p, _ in axes), tuple(t for *_, t in axes))


@given(grids())
def test_cell_and_index_are_inverse_and_row_major(grid):
    cells = [grid.cell(k) for k in range(len(grid))]
    assert cells == list(np.ndindex(*grid.shape))
    assert [grid.index(*c) for c in cells] == list(range(len(grid)))


@given(grids(), st.integers(1, 3))
def test_patches_are_the_slices_they_say(grid, n_images):
    images = torch.arange(n_images * 2 * np.prod(grid.image_size)).reshape(n_images, 2, *grid.image_size)
    patches = grid.extract(images, range(len(grid)))
    assert patches.shape == (n_images, len(grid), 2, *grid.patch_size)
    for k in range(len(grid)):
        window = tuple(slice(c, c + p) for c, p in zip(grid.corner(k), grid.patch_size))
        assert torch.equal(patches[:, k], images[(slice(None), slice(None), *window)])


@given(grids(), st.data())
def test_gather_keeps_the_order_of_its_cells(grid, data):
    images = torch.rand(3, 1, *grid.image_size)
    cells = torch.tensor(data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, len(grid) - 1)), min_size=1, max_size=6)))
    whole = grid.extract(images, range(len(grid)))
    assert torch.equal(grid.gather(images, cells), whole[cells[:, 0], cells[:, 1]])


class Ops(TorchDispatchMode):
    "The operations that reach the dispatcher, by name."
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@given(grids(), st.sampled_from([torch.uint8, torch.bool, torch.int16, torch.bfloat16, torch.float64]), st.booleans(), st.data())
def test_gather_copies_windows_and_with_gradient_indexes(grid, dtype, strided, data):
    "The bits of slices, for every number format and layout; no window's numbers are looked up one by one; and the same gradient."
    images = torch.randint(2, (2, 3, *grid.image_size)).to(dtype)
    if strided: images = images.transpose(0, 1).contiguous().transpose(0, 1)
    cells = torch.tensor(data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, len(grid) - 1)), max_size=6)), dtype=torch.long).view(-1, 2)
    corners = [(b, [slice(c, c + p) for c, p in zip(grid.corner(k), grid.patch_size)]) for b, k in cells.tolist()]
    cut = [images[(b, slice(None), *window)] for b, window in corners]
    with Ops() as ops: patches = grid.gather(images, cells)
    assert patches.dtype == dtype and patches.shape == (len(cells), 3, *grid.patch_size)
    assert all(map(torch.equal, patches, cut)) and (not len(cells) or ops.seen.count('stack') + ops.seen.count('cat') == 2 and 'index' not in ops.seen)
    assert torch.equal(torch.cat([*grid.stream(images, [cells[:1], cells[1:]])]), patches)
    slow, fast = (torch.rand(2, 3, *grid.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in 'ab')
    weights = torch.arange(len(cells) * 3 * np.prod(grid.patch_size), dtype=torch.float64).reshape(patches.shape)
    (grid.gather(fast, cells) * weights).sum().backward()
    if len(cells): (torch.stack([slow[(b, slice(None), *window)] for b, window in corners]) * weights).sum().backward()
    assert torch.equal(fast.grad, torch.zeros_like(fast) if slow.grad is None else slow.grad)


def test_a_cell_that_is_not_there_is_refused():
    for images in (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, requires_grad=True)):
        for cell in ([0, 4], [1, 0]):
            with pytest.raises(IndexError): PatchGrid(4, 2).gather(images, torch.tensor([cell]))


@given(grids())
def test_place_puts_patches_back(grid):
    images = torch.rand(2, 3, *grid.image_size, dtype=torch.float64)
    assert torch.allclose(grid.place(grid.extract(images, range(len(grid)))), images)


class Lazy:
    "An image that is read by window, channels last."
    def __init__(self, pixels): self.pixels = pixels
    def read(self, row, col, height, width): return self.pixels[row:row + height, col:col + width]


def test_lazily_read_images_give_the_same_patches():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 9, 3), dtype=np.uint8)
    grid = PatchGrid((12, 9), (4, 3))
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(grid.extract([Lazy(p) for p in pixels], [5, 0, 3]), grid.extract(tensor, [5, 0, 3]))


@pytest.mark.parametrize('args, value', [(((64, 64), 65), '65'), (((64, 64), 30), '64'), (((64, 64), 16, 10), '64'), (((64, 64), 16, 17), '17'), (((64, 64), 0), '0'), (((64, 64), (8, 8, 8)), '(8, 8, 8)')])
def test_a_grid_that_does_not_fit_is_refused_in_one_sentence(args, value):
    with pytest.raises(ValueError) as e: PatchGrid(*args)
    assert value in str(e.value) and '\n' not in str(e.value) and str(e.value).endswith('.')


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match='32'): PatchGrid((64, 64), 16).extract(torch.zeros(1, 3, 32, 64), [0])


@pytest.mark.parametrize('shape', [(3, 4, 6), (1, 4, 6), (4, 6)])
def test_a_picture_is_drawn_as_it_lies(shape):
    "Row down, column right: not transposed, whatever the axes of the tensor."
    import matplotlib
    matplotlib.use('agg')
    image = torch.zeros(shape)
    image[..., 0, 5] = 1.
    drawn = np.asarray(PatchGrid((4, 6), 2).plot(image, mask=torch.arange(6) == 2).images[0].get_array()).reshape(4, 6, -1)
    assert drawn[0, 5].max() == 1 and drawn.sum() == drawn[0, 5].sum()


def test_plot_hands_on_to_plot_grid():
    import matplotlib
    matplotlib.use('agg')
    grid, image = PatchGrid((4, 6), 2), torch.zeros(4, 6)
    mask, values = torch.arange(6) == 2, torch.tensor([0., 1, 2, torch.nan, 4, 5])
    drawn = [[c.get_paths() for c in ax.collections] for ax in (grid.plot(image, mask, values), plot_grid(grid, image, mask, values))]
    assert [len(c) for c in drawn[0]] == [6, 5, 1, 1] == [len(c) for c in drawn[1]]   # lines, colours, the blank one, the outline
    corner = drawn[0][3][0].vertices.min(0)
    assert tuple(corner) == (grid.corner(2)[1] - .5, grid.corner(2)[0] - .5)


def test_what_is_not_chosen_turns_pale_and_a_blank_cell_is_named():
    import matplotlib
    matplotlib.use('agg')
    grid, image = PatchGrid((4, 6), 2), torch.zeros(4, 6)
    pale = grid.plot(image, mask=torch.arange(6) == 2).collections[1]
    assert len(pale.get_paths()) == 5 and pale.get_alpha() == .65
    ax = grid.plot(image, values=torch.tensor([0., 1, 2, torch.nan, 4, 5]), label='share', blank='glass')
    assert ax.collections[2].get_hatch() and [t.get_text() for t in ax.get_legend().get_texts()] == ['glass']
    assert ax.figure.axes[1].get_ylabel() == 'share'
    assert grid.plot(image, values=torch.arange(6)).get_legend() is None   # nothing blank: nothing to explain
