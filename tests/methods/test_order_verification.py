import pytest
import torch

from puzzles import built, solve, squares
from tubelet import draws
from tubelet.nn import tuples
from tubelet.types import TubeletError

SMALL = {
    "order_verification": {"learner": {"hidden": 16}, "data": {"frames": 8}},
    "order_verification, of clips": {"learner": {"hidden": 16, "length": 2}, "data": {"frames": 8}},
}


def test_tells_order_where_squares_move_and_not_where_they_stand():
    learner = built("order_verification", hidden=128)
    moving, standing = solve(learner, 8, 300, 3e-3, speed=(0.8, 1.4), side=5.0)
    assert moving["accuracy"] >= 0.95
    assert standing["accuracy"] == 0.5  # of the mean of both kinds


@pytest.mark.parametrize("length", [1, 2])
def test_the_loss_is_that_of_each_tuple_encoded_by_itself(length):
    learner = built("order_verification", hidden=16, length=length).eval()
    batch = squares(6, 0, 8 * length, (0, 1, 2, 3), side=5.0)
    (video,), keys = batch["video"], batch["key"]
    places = tuples.moving_places(video[:, :, ::length], keys, 5, 0.75, "places").tolist()
    backwards = (draws.uniform(keys, 3, "backwards") < 0.5).tolist()
    loss = right = 0.0
    for i, (a, b, c, d, e) in enumerate(places):
        for j, (order, label, weight) in enumerate(
            [((b, c, d), 1, 0.25), ((b, a, d), 0, 0.375), ((b, e, d), 0, 0.375)]
        ):
            seen = []
            for place in reversed(order) if backwards[i][j] else order:
                clip = video[i : i + 1, :, place * length : (place + 1) * length]
                clip = torch.cat([clip, clip], dim=2) if length == 1 else clip
                seen.append(learner.backbone(clip).tokens.mean(1))
            logits = learner.head(torch.cat(seen, dim=1)).log_softmax(1)[0]
            loss = loss - weight * logits[label] / len(video)
            right += float(logits.argmax() == label) * (0.5 if label else 0.25) / len(video)
    output = learner(batch, "main")
    torch.testing.assert_close(output.loss, loss, atol=1e-6, rtol=1e-6)
    assert float(output.metrics["accuracy"]) == pytest.approx(right)


def test_refuses_what_it_cannot_do():
    for arguments, words in [
        ({"length": 3}, "learner.length must be 1 or a multiple of 2"),
        ({"length": 0}, "learner.length must be 1 or a multiple of 2"),
        ({"window": 0.0}, "learner.window"),
        ({"backbone": {"background": "remove"}}, "backbone.background remove leaves nothing"),
    ]:
        with pytest.raises(TubeletError, match=words):
            built("order_verification", **arguments)
    assert built("order_verification", backbone={"background": "remove"}, length=2).density == 2
    with pytest.raises(TubeletError, match=r"5 different frames cannot be taken from a clip of 4: raise data.frames"):
        built("order_verification")(squares(4, 0, 4, (0, 1, 2, 3)), "main")
