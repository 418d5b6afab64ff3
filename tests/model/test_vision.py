"""The tower, the patch merger and the projector, index by index."""

import torch
import torch.nn.functional as F

from tests.tiny import VISION, tiny_model

SIZES = [(56, 84), (28, 28), (28, 112)]


def images():
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(3, *size, generator=generator) for size in SIZES]


def test_merge_order_is_channel_major():
    """Row = 2 x 2 patches; index = channel * 4 + dy * 2 + dx. Patch-major order trains fine and loads garbage."""
    merger = tiny_model().multi_modal_projector.patch_merger
    rows, cols, D = 4, 6, VISION.hidden_size
    x_TD = torch.randn(rows * cols, D, generator=torch.Generator().manual_seed(1))
    grid = x_TD.view(rows, cols, D)
    merged = [
        torch.stack([grid[2 * r + dy, 2 * c + dx, d] for d in range(D) for dy in range(2) for dx in range(2)])
        for r in range(rows // 2)
        for c in range(cols // 2)
    ]
    wanted = torch.stack(merged) @ merger.merging_layer.weight.T
    assert torch.allclose(merger(x_TD, rows, cols), wanted, atol=1e-5)


def test_patches_are_a_convolution_in_raster_order():
    conv = tiny_model().vision_tower.patch_conv
    image = images()[0]
    wanted = F.conv2d(image[None], conv.weight, stride=VISION.patch_size)[0].flatten(1).T
    assert torch.allclose(conv(image), wanted, atol=1e-5)


def test_images_do_not_see_each_other():
    """Packed and alone: the same rows, one per merged patch, and split in the order given."""
    model = tiny_model()
    with torch.no_grad():
        together = model.encode_images(images())
        for image, rows in zip(images(), together, strict=True):
            assert rows.shape == (image.shape[1] // 28 * image.shape[2] // 28, model.config.text.hidden_size)
            assert torch.allclose(rows, model.encode_images([image])[0], atol=1e-5)


def test_attention_is_bidirectional_and_knows_rows_from_columns():
    """The first patch reacts to the last; a transposed image is another image."""
    model = tiny_model()
    image = images()[0]
    changed = image.clone()
    changed[:, -14:, -14:] += 1
    with torch.no_grad():
        first, first_changed = (model.vision_tower([x])[0] for x in (image, changed))
        assert not torch.allclose(first, first_changed, atol=1e-4)
        flat = torch.ones(3, 56, 84)
        flat[:, :14, :14] = -1
        rows = model.vision_tower([flat]).view(4, 6, -1)
        assert not torch.allclose(rows[0, 1], rows[1, 0], atol=1e-4)


def test_projector_uses_exact_gelu_and_the_native_eps():
    """The tanh form differs by 1e-3; transformers' eps of the projector norm is 1e-6, Mistral's 1e-5."""
    projector = tiny_model().multi_modal_projector
    assert projector.norm.eps == 1e-5
    x_TD = torch.randn(4, VISION.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        merged = projector.patch_merger(projector.norm(x_TD), 2, 2)
        hidden = merged @ projector.linear_1.weight.T
        wanted = (0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))) @ projector.linear_2.weight.T
        assert torch.allclose(projector(x_TD, [(2, 2)]), wanted, atol=1e-5)
