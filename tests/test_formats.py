"Every format of the table in nbs/images/README.md against its reference reader: 100 windows each, over borders, at every level."
import numpy as np, openslide, pytest, tifffile
from PIL import Image, ImageOps
from patchgd_nb.images import readers
from patchgd_nb.images.readers import PhotoImage, SlideImage, TiffImage, open_image

Y, X = np.mgrid[:150, :200]
COLOURS = np.stack([128 + 100 * np.sin(X / 9 + k) * np.cos(Y / 7 - k) for k in range(5)], -1).astype(np.uint8)
RGB, GREY = np.ascontiguousarray(COLOURS[..., :3]), np.ascontiguousarray(COLOURS[..., 0])
DEEP = RGB.astype(np.uint16) * 256 + 77
STRONG = np.concatenate([np.minimum(RGB, COLOURS[..., 3:4]), COLOURS[..., 3:4]], -1)   # colours below their opacity


def by_pillow(path):
    "The reference of what no maker made: Pillow, upright, transparency over white; the upper 8 of 16 bits of grey."
    with Image.open(path) as im:
        im = ImageOps.exif_transpose(im)
        if im.mode.startswith('I;16'): return np.repeat((np.asarray(im) >> 8).astype(np.uint8)[..., None], 3, -1)
        if im.mode == 'La': im = im.convert('LA')
        if 'A' in im.mode or 'transparency' in im.info: im = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im.convert('RGBA'))
        return np.asarray(im.convert('RGB'))


def windows(shape, n=100):
    rng, (h, w) = np.random.default_rng(0), shape
    size = max(2, min(h, w, 300) // 2)
    yield 0, 0, h if h < 2000 else 300, w if w < 2000 else 300
    for _ in range(n - 1): yield int(rng.integers(-size, h + size // 2)), int(rng.integers(-size, w + size // 2)), int(rng.integers(1, size)), int(rng.integers(1, size))


def cut(pixels, r, c, h, w):
    out = np.full((h, w, 3), 255, np.uint8)
    r0, r1, c0, c1 = max(r, 0), min(r + h, pixels.shape[0]), max(c, 0), min(c + w, pixels.shape[1])
    if r0 < r1 and c0 < c1: out[r0 - r:r1 - r, c0 - c:c1 - c] = pixels[r0:r1, c0:c1]
    return out


def assert_reads(path, pixels, within=0):
    im = open_image(path)
    assert im.shape == pixels.shape[:2]
    for window in windows(im.shape): assert np.abs(im.read(*window).astype(int) - cut(pixels, *window)).max(initial=0) <= within, window


def assert_openslide(path, n=100):
    im, slide = open_image(path), openslide.OpenSlide(path)
    assert im.levels == [(h, w) for w, h in slide.level_dimensions]
    for level, shape in enumerate(im.levels):
        down = slide.level_downsamples[level]
        for r, c, h, w in windows(shape, n // len(im.levels) + 1):
            region = slide.read_region((round(c * down), round(r * down)), level, (w, h))
            expected = np.asarray(Image.alpha_composite(Image.new('RGBA', region.size, 'white'), region).convert('RGB'))
            assert np.array_equal(im.read(r, c, h, w, level), expected), (level, r, c, h, w)
    return im


TIFFS = {   # what is written by tifffile: pixels, options, and how far lossy conversions of colour may lie from Pillow
    'rgb strips': (RGB, {}), 'rgb tiles, zlib, predictor': (RGB, dict(tile=(48, 64), compression='zlib', predictor=True)), 'rgb lzw': (RGB, dict(compression='lzw', rowsperstrip=7)),
    'rgb planes': (np.moveaxis(RGB, -1, 0), dict(planarconfig='separate', tile=(48, 64))), 'rgb planes, lzw': (np.moveaxis(RGB, -1, 0), dict(planarconfig='separate', compression='lzw', rowsperstrip=40)),
    'rgb 16 bits': (DEEP, dict(compression='zlib')), 'rgb 16 bits, planes': (np.moveaxis(DEEP, -1, 0), dict(planarconfig='separate', compression='zlib')),
    'rgb and opacity': (COLOURS[..., :4], dict(extrasamples=['unassalpha'], tile=(64, 64))), 'rgb multiplied by opacity': (STRONG, dict(extrasamples=['assocalpha'], compression='zlib'), 1), 'rgb and something': (COLOURS[..., :4], dict(extrasamples=['unspecified'])),
    'rgb in jpeg tiles': (RGB, dict(compression='jpeg', tile=(64, 64)), 1), 'rgb in jpeg strips': (RGB, dict(compression='jpeg', rowsperstrip=32), 1),
    'ycbcr in jpeg tiles': (RGB, dict(photometric='ycbcr', compression='jpeg', tile=(64, 64), subsampling=(2, 2)), 1), 'ycbcr lzw': (RGB, dict(photometric='ycbcr', compression='lzw'), 3), 'ycbcr plain': (RGB, dict(photometric='ycbcr')),
    'grey': (GREY, dict(photometric='minisblack')), 'white is zero': (GREY, dict(photometric='miniswhite', compression='lzw')), 'grey 16 bits': (DEEP[..., 0], dict(photometric='minisblack', compression='zlib', tile=(64, 64))), 'grey jpeg': (GREY, dict(photometric='minisblack', compression='jpeg'), 1),
    'grey and opacity': (COLOURS[..., :2], dict(photometric='minisblack', extrasamples=['unassalpha'])), 'one bit': (GREY > 128, dict(photometric='minisblack', compression='packbits')), 'one bit, white is zero': (GREY > 128, dict(photometric='miniswhite', rowsperstrip=9)),
    'palette': (GREY, dict(photometric='palette', colormap=np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16))),
    'cmyk': (COLOURS[..., :4], dict(photometric='separated')), 'cmyk lzw': (COLOURS[..., :4], dict(photometric='separated', compression='lzw', tile=(64, 64))), 'cmyk 16 bits': (COLOURS[..., :4].astype(np.uint16) * 255, dict(photometric='separated', compression='zlib')),
    'cielab': (RGB, dict(photometric='cielab', compression='zlib')), **{f'orientation {o}': (RGB, dict(tile=(48, 64), extratags=[(274, 3, 1, o, True)])) for o in range(1, 9)},
}


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('name', TIFFS)
def test_tiffs_of_tifffile(tmp_path, name, order):
    pixels, options, *within = TIFFS[name]
    with tifffile.TiffWriter(tmp_path / 'x.tif', byteorder=order, bigtiff=order == '<' and 'orientation' in name) as tif: tif.write(pixels, **{'photometric': 'rgb', 'metadata': None, **options})
    assert_reads(tmp_path / 'x.tif', by_pillow(tmp_path / 'x.tif'), *within)


@pytest.mark.parametrize('name', ['png', 'webp', 'jpegxl', 'jpegxr', 'jpeg2000', 'zstd', 'lzma', 'lerc'])
@pytest.mark.parametrize('pixels', [RGB, GREY, DEEP], ids=['rgb', 'grey', '16 bits'])
def test_codecs_that_pillow_does_not_know(tmp_path, name, pixels):
    "Their reference is tifffile."
    if name == 'webp' and pixels is not RGB: pytest.skip('WebP has no such pixels')
    tifffile.imwrite(tmp_path / 'x.tif', pixels, photometric='rgb' if pixels.ndim == 3 else 'minisblack', compression=name, tile=(64, 64))
    whole = tifffile.imread(tmp_path / 'x.tif')
    whole = (whole >> 8).astype(np.uint8) if whole.dtype == np.uint16 else whole
    assert_reads(tmp_path / 'x.tif', whole if whole.ndim == 3 else np.repeat(whole[..., None], 3, -1))


MODES = ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16']


@pytest.mark.parametrize('options', [dict(), dict(compression='tiff_lzw'), dict(compression='tiff_adobe_deflate'), dict(compression='group4')], ids=lambda o: o.get('compression', 'plain'))
@pytest.mark.parametrize('mode', MODES)
def test_tiffs_of_pillow(tmp_path, mode, options):
    im = Image.fromarray(DEEP[..., 0]) if mode == 'I;16' else Image.fromarray(RGB).convert(mode)
    if options.get('compression') == 'group4' and mode != '1': pytest.skip('of one bit only')
    im.save(tmp_path / 'x.tif', **options)
    assert_reads(tmp_path / 'x.tif', by_pillow(tmp_path / 'x.tif'), 3 if mode == 'YCbCr' else 0)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_of_photographs(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(RGB).save(tmp_path / f'x.{suffix}', exif=exif)
    assert_reads(tmp_path / f'x.{suffix}', by_pillow(tmp_path / f'x.{suffix}'))


def test_orientation_behind_the_pixels(tmp_path):
    "PNG allows EXIF at its end; to see it, the pixels need not be decoded."
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(RGB).save(tmp_path / 'x.png', exif=exif)
    data = (tmp_path / 'x.png').read_bytes()
    at = data.index(b'eXIf') - 4
    length = int.from_bytes(data[at:at + 4], 'big') + 12
    chunk, rest = data[at:at + length], data[:at] + data[at + length:]
    (tmp_path / 'x.png').write_bytes(rest[:-12] + chunk + rest[-12:])
    assert_reads(tmp_path / 'x.png', np.rot90(RGB, -1))


PHOTOS = {'grey': GREY, '16 bits': DEEP[..., 0], 'opacity': COLOURS[..., :4], 'grey and opacity': COLOURS[..., :2]}


@pytest.mark.parametrize('name', PHOTOS)
def test_png(tmp_path, name):
    Image.fromarray(PHOTOS[name]).save(tmp_path / 'x.png')
    assert_reads(tmp_path / 'x.png', by_pillow(tmp_path / 'x.png'))


@pytest.mark.parametrize('name, mode, options', [('x.gif', 'P', dict(transparency=3)), ('x.png', 'P', dict(transparency=3)), ('x.png', 'L', dict(transparency=128)), ('x.png', 'RGB', dict(transparency=(28, 28, 28))), ('x.png', '1', {}), ('x.webp', 'RGBA', dict(lossless=True)), ('x.jpg', 'CMYK', {}), ('x.jpg', 'L', {}), ('x.bmp', 'P', {})], ids=str)
def test_photographs_of_other_modes(tmp_path, name, mode, options):
    Image.fromarray(COLOURS[..., :4]).convert(mode).save(tmp_path / name, **options)
    assert_reads(tmp_path / name, by_pillow(tmp_path / name))


def test_ultramnist_keeps_the_upper_bits(tmp_path):
    from patchgd_nb.datasets.ultramnist import _read_pixels
    Image.fromarray(DEEP[..., 0]).save(tmp_path / 'x.png')
    assert np.array_equal(_read_pixels(tmp_path / 'x.png', *GREY.shape), GREY)


@pytest.mark.parametrize('compression', ['jpeg', 'APERIO_JP2000_RGB', 'APERIO_JP2000_YCBC'])
def test_aperio(tmp_path, compression):
    "Two levels; what is YCbCr in JPEG 2000 goes to OpenSlide."
    with tifffile.TiffWriter(tmp_path / 'x.svs') as tif:
        for i, level in enumerate((RGB[:128, :192], RGB[:32, :48], RGB[:128:2, :192:2])):   # the second is the thumbnail
            tif.write(level, photometric='rgb', description='Aperio Image Library v12\r\n|MPP = 0.25', metadata=None, **(dict() if i == 1 else dict(tile=(32, 32), compression=compression)))
    assert type(assert_openslide(tmp_path / 'x.svs')) is (SlideImage if 'YCBC' in compression else TiffImage)


def test_ome(tmp_path):
    "Levels in sub-directories; each against tifffile."
    levels = [RGB[:144, :192], RGB[:144:2, :192:2], RGB[:144:4, :192:4]]
    with tifffile.TiffWriter(tmp_path / 'x.ome.tif') as tif:
        tif.write(levels[0], photometric='rgb', tile=(32, 32), subifds=2, metadata=dict(axes='YXS'))
        for level in levels[1:]: tif.write(level, photometric='rgb', tile=(32, 32), subfiletype=1)
    im = open_image(tmp_path / 'x.ome.tif')
    assert im.levels == [l.shape[:2] for l in levels]
    for i, level in enumerate(levels):
        for window in windows(level.shape[:2], 34): assert np.array_equal(im.read(*window, i), cut(level, *window))


@pytest.mark.parametrize('planar', [False, True])
def test_channels_are_chosen(tmp_path, planar):
    channels = np.moveaxis(COLOURS, -1, 0).astype(np.uint16) * 256
    if planar: tifffile.imwrite(tmp_path / 'x.tif', channels, photometric='minisblack', planarconfig='separate', metadata=None)
    else: tifffile.imwrite(tmp_path / 'x.tif', channels, photometric='minisblack', metadata=dict(axes='CYX'), ome=True)
    with pytest.raises(ValueError, match=r'x.tif.*5 channels.*open_image\(path, channels='): open_image(tmp_path / 'x.tif')
    for chosen in [(4, 0, 2), (3,)]:
        im = open_image(tmp_path / 'x.tif', channels=chosen)
        assert np.array_equal(im.read(0, 0, *im.shape), np.broadcast_to(COLOURS[..., list(chosen)], RGB.shape))
    for wrong in [(0, 1), (0, 1, 5)]:
        with pytest.raises(ValueError, match='channel'): open_image(tmp_path / 'x.tif', channels=wrong)


def write_pages(path, *pages):
    with tifffile.TiffWriter(path) as tif:
        for pixels, options in pages: tif.write(pixels, **{'photometric': 'rgb', 'metadata': None, **options})


REFUSED = {
    'macro first': [(RGB[:40], {}), (RGB, {})], 'focal planes': [(RGB, {}), (RGB[::-1], {})], 'raw of a camera': [(RGB[::4, ::4], dict(subifds=1, subfiletype=1)), (GREY, dict(photometric='cfa'))],
    'float': [(RGB.astype(np.float32), {})], 'cfa': [(GREY, dict(photometric='cfa'))], 'channels': [(COLOURS, dict(photometric='minisblack', planarconfig='contig'))], 'icc lab': [(RGB, dict(photometric='icclab'))],
    'aperio ycbcr without its maker': [(RGB, dict(compression='APERIO_JP2000_YCBC', tile=(64, 64)))],
    'lerc with opacity': [(COLOURS[..., :4], dict(extrasamples=['unassalpha'], compression='lerc'))], 'five samples': [(COLOURS, dict(extrasamples=['unspecified', 'unassalpha']))], 'jpeg with opacity': [(COLOURS[..., :2], dict(photometric='minisblack', extrasamples=['unassalpha'], compression='jpeg'))],
    '8 bits of palette': [(GREY, dict(photometric='palette', colormap=np.arange(768).reshape(3, 256).astype(np.uint16) % 256))],
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_not_plain_is_refused(tmp_path, name):
    "In words for a file that is healthy."
    write_pages(tmp_path / 'x.tif', *REFUSED[name])
    with pytest.raises(ValueError, match='x.tif cannot be read') as e: open_image(tmp_path / 'x.tif')
    assert 'download' not in str(e.value) and 'object' not in str(e.value) and '\n' not in str(e.value) and type(e.value) is ValueError
    assert ('channels=' in str(e.value)) == (name == 'channels')   # that advice helps with channels of grey only


def set_tag(path, tag, value):
    "Overwrite a tag's value, whatever a writer thinks of it."
    with tifffile.TiffFile(path) as tif: entry = tif.pages[0].tags[tag]
    data = bytearray(path.read_bytes())
    data[entry.valueoffset:entry.valueoffset + 2] = value.to_bytes(2, 'little')
    path.write_bytes(data)


@pytest.mark.parametrize('options', [{}, dict(compression='packbits')], ids=str)
@pytest.mark.parametrize('predictor', [2, 3, 99])
def test_a_predictor_without_its_compression_is_refused(tmp_path, options, predictor):
    "libtiff leaves it alone, tifffile applies it: who is right, nobody knows."
    write_pages(tmp_path / 'x.tif', (RGB, dict(extratags=[(65317, 3, 1, predictor, True)], **options)))
    data = (tmp_path / 'x.tif').read_bytes()
    with tifffile.TiffFile(tmp_path / 'x.tif') as tif: place = tif.pages[0].tags[65317].offset
    (tmp_path / 'x.tif').write_bytes(data[:place] + (317).to_bytes(2, 'little') + data[place + 2:])
    with pytest.raises(ValueError, match=f'x.tif.*with the predictor {predictor}.: save it without'): open_image(tmp_path / 'x.tif')


def test_a_strip_without_bytes_is_not_blank(tmp_path):
    "libtiff guesses its length."
    write_pages(tmp_path / 'x.tif', (GREY, dict(photometric='minisblack')))
    set_tag(tmp_path / 'x.tif', 279, 0)
    with pytest.raises(ValueError, match='x.tif.*a strip of it has no bytes'): open_image(tmp_path / 'x.tif')


def test_an_unknown_order_of_samples_is_refused(tmp_path):
    write_pages(tmp_path / 'x.tif', (RGB, {}))
    set_tag(tmp_path / 'x.tif', 284, 3)
    with pytest.raises(ValueError, match='x.tif.*planar configuration is 3'): open_image(tmp_path / 'x.tif')


def test_levels_have_palettes_of_their_own(tmp_path):
    palettes = np.random.default_rng(0).integers(0, 65536, (2, 3, 256)).astype(np.uint16)
    first, second = (dict(photometric='palette', colormap=p, tile=(64, 64)) for p in palettes)
    write_pages(tmp_path / 'x.tif', (GREY, first), (GREY[::2, ::2], dict(subfiletype=1, **second)))
    im = open_image(tmp_path / 'x.tif')
    for level, pixels in enumerate((GREY, GREY[::2, ::2])): assert np.array_equal(im.read(0, 0, *pixels.shape, level), (palettes[level] >> 8).T[pixels])


def test_a_jpeg_of_rgb_in_a_directory_of_ycbcr_is_refused(tmp_path):
    "libtiff goes by the directory, libjpeg by what the JPEG says of itself."
    tiles = [np.ascontiguousarray(np.pad(RGB, ((0, 42), (0, 56), (0, 0)))[r:r + 64, c:c + 64]) for r in (0, 64, 128) for c in (0, 64, 128, 192)]
    encode = __import__('imagecodecs').jpeg_encode
    for colours in ('RGB', 'YCBCR'):
        data = (encode(t, 95, colorspace='RGB', outcolorspace=colours) for t in tiles)
        tifffile.imwrite(tmp_path / f'{colours}.tif', data, shape=RGB.shape, dtype=np.uint8, photometric='ycbcr', subsampling=(2, 2), compression='jpeg', tile=(64, 64))
    assert_reads(tmp_path / 'YCBCR.tif', by_pillow(tmp_path / 'YCBCR.tif'), 1)
    with pytest.raises(ValueError, match='broken tile, 0 of level 0 .it is RGB, and the directory says YCbCr.: save it as RGB'): open_image(tmp_path / 'RGB.tif').read(0, 0, 9, 9)


def test_a_tile_of_more_bits_than_the_directory_says_is_refused(tmp_path):
    deep = __import__('imagecodecs').png_encode(DEEP[:64, :64])
    tifffile.imwrite(tmp_path / 'x.tif', iter([deep]), shape=(64, 64, 3), dtype=np.uint8, photometric='rgb', compression='png', tile=(64, 64))
    with pytest.raises(ValueError, match='broken tile.*uint16'): open_image(tmp_path / 'x.tif').read(0, 0, 9, 9)


@pytest.mark.parametrize('codec', ['jpeg', 'webp'])
def test_planes_that_are_pictures_are_refused(tmp_path, codec):
    "Here as tiffcp writes them: JPEG without a note of its colours; WebP, which knows no plane of grey."
    encode = getattr(__import__('imagecodecs'), f'{codec}_encode')
    planes = [encode(np.ascontiguousarray(RGB[:64, :64] if codec == 'webp' else RGB[:64, :64, k])) for k in range(3)]
    if codec == 'jpeg': planes = [p[:2] + p[p.index(b'\xff\xdb'):] for p in planes]   # without its JFIF
    tifffile.imwrite(tmp_path / 'x.tif', iter(planes), shape=(3, 64, 64), dtype=np.uint8, photometric='rgb', planarconfig='separate', compression=codec, tile=(64, 64))
    with pytest.raises(ValueError, match='x.tif.*its planes are compressed as .*another compression'): open_image(tmp_path / 'x.tif')


@pytest.mark.parametrize('name', ['x.jp2', 'x.avif', 'x.ppm', 'x.tga', 'x.ico', 'x.mpo', 'jpeg.tif', 'png.svs', 'ppm.png', 'jp2.jpg', 'plain', 'empty.tif'])
def test_a_healthy_picture_of_another_kind(tmp_path, name):
    "Is refused in words that fit it: what to save it as."
    kinds = dict(jpeg='JPEG', png='PNG', ppm='PPM', jp2='JPEG2000', plain='JPEG')
    if name == 'empty.tif': (tmp_path / name).touch()
    else: Image.fromarray(RGB).save(tmp_path / name, format=kinds.get(name.split('.')[0]))
    with pytest.raises(ValueError, match=f'{name} cannot be read as a .*: copy or download it again, or save it as') as e: open_image(tmp_path / name)
    assert 'header' not in str(e.value) and 'identify' not in str(e.value)


@pytest.mark.parametrize('data', [b'no tile', b'\x89PNG\r\n\x1a\n'], ids=repr)
@pytest.mark.parametrize('codec', ['jpeg', 'jpeg2000', 'png', 'webp', 'jpegxl', 'jpegxr'])
def test_a_tile_that_is_no_picture(tmp_path, codec, data):
    tifffile.imwrite(tmp_path / 'x.tif', iter([data * 20]), shape=(64, 64, 3), dtype=np.uint8, photometric='rgb', compression=codec, tile=(64, 64))
    with pytest.raises(ValueError, match='x.tif has a broken tile, 0 of level 0') as e: open_image(tmp_path / 'x.tif').read(0, 0, 9, 9)
    assert 'object' not in str(e.value) and 'buffer' not in str(e.value)


@pytest.mark.parametrize('axes', ['ZYX', 'TYX', 'QYX'])
def test_stacks_are_refused(tmp_path, axes):
    tifffile.imwrite(tmp_path / 'x.tif', np.moveaxis(RGB, -1, 0), photometric='minisblack', metadata=dict(axes=axes))
    with pytest.raises(ValueError, match='x.tif.*3 pictures along.*save the one'): open_image(tmp_path / 'x.tif')


def test_an_index_of_olympus_is_refused(tmp_path):
    write_pages(tmp_path / 'x.vsi', (RGB, {}))
    with pytest.raises(ValueError, match='x.vsi.*ets.*OME-TIFF'): open_image(tmp_path / 'x.vsi')


def test_labels_and_masks_are_no_levels(tmp_path):
    write_pages(tmp_path / 'x.tif', (RGB, {}), (RGB[:75, :100], dict(subfiletype=1)), (GREY[:80, :101] > 99, dict(photometric='mask', subfiletype=5)), (RGB[:50, :190], dict(subfiletype=9)), (GREY[:40, :53], dict(subfiletype=1, photometric='minisblack')))
    assert open_image(tmp_path / 'x.tif').levels == [(150, 200), (75, 100)]


@pytest.mark.parametrize('maker', ['leica', 'ventana', 'trestle', 'philips-tiff', 'hamamatsu', 'mirax', 'zeiss', 'dicom', 'sakura', 'a new one'])
def test_the_maker_is_asked_first(tmp_path, monkeypatch, maker):
    "With a plain TIFF that says it is another maker's."
    write_pages(tmp_path / 'x.tif', (RGB, dict(tile=(64, 64))))
    monkeypatch.setattr(readers.openslide.OpenSlide, 'detect_format', lambda path: maker)
    assert isinstance(open_image(tmp_path / 'x.tif'), SlideImage)


@pytest.mark.parametrize('codec, options', [('png', {}), ('jpegxl', dict(effort=1)), ('jpegxr', {})])
def test_pictures_in_tiles_that_would_unpack_to_gigabytes(tmp_path, codec, options):
    "The directory says 64 x 64, the tile itself 9,000 x 9,000."
    encode = getattr(__import__('imagecodecs'), f'{codec}_encode')
    bomb = encode(np.zeros((9000, 9000), np.uint8), **options)
    tifffile.imwrite(tmp_path / 'x.tif', iter([bomb]), shape=(64, 64), dtype=np.uint8, photometric='minisblack', compression=codec, tile=(64, 64))
    with pytest.raises(ValueError, match='broken tile, 0 of level 0 .it would unpack to 9000 x 9000'): open_image(tmp_path / 'x.tif').read(0, 0, 9, 9)


def test_hamamatsu(data):
    im = assert_openslide(data / 'formats/test3-DAPI-2-387.ndpi', 200)
    assert isinstance(im, SlideImage) and im.shape == (4864, 3968)


def test_public_samples(data):
    for path in sorted((data / 'formats').iterdir()):
        if path.suffix == '.ndpi': continue
        if path.name == 'cmyk-4c-8b.tiff':   # with opacity, which Pillow refuses
            pixels = tifffile.imread(path)
            ink = np.asarray(Image.fromarray(pixels[..., :4], 'CMYK').convert('RGB'))
            rgba = Image.fromarray(np.concatenate([ink, pixels[..., 4:]], -1))
            expected = np.asarray(Image.alpha_composite(Image.new('RGBA', rgba.size, 'white'), rgba).convert('RGB'))
        else: expected = by_pillow(path)
        assert_reads(path, expected, 3 if 'jpeg' in path.name else 0)


def test_aperio_sample(data): assert isinstance(assert_openslide(data / 'wsi/CMU-1-Small-Region.svs', 100), TiffImage)


def test_ome_sample(data):
    assert_reads(data / 'wsi/OS-1-detail.ome.tif', tifffile.imread(data / 'wsi/OS-1-detail.ome.tif'))
