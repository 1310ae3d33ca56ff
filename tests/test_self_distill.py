"""The model with the answer in view teaches itself: its loss and gradient against numbers by hand."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from test_training import curve, mixture, trained

from replaykit.data.record import Record, dialogue
from replaykit.errors import RecipeError, RunError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe import load_recipe
from replaykit.recipe.remedies import SelfDistillSettings as Settings
from replaykit.recipe.train import Train
from replaykit.steps.train.asked import IN_VIEW, asked
from replaykit.steps.train.batches import TokenisedRows
from replaykit.steps.train.fit import check_self_distill
from replaykit.steps.train.remedies import Run, restore, store
from replaykit.steps.train.remedies.self_distill import SelfDistill, forward, reverse
from replaykit.steps.train.texts import collator


@pytest.fixture
def network():
    return loading.load_model("nano", train=True).train()


def rows_of(count=4):
    """Target rows, and after each two of them a replay row."""
    records = []
    for number, task in enumerate(world.draw("referral", count, seed=1)):
        records.append(Record(dialogue(task.prompt, task.answer), "target"))
        if number % 2:
            old = world.draw_old(1, seed=number)[0]
            records.append(Record(dialogue(old.prompt, old.answer), "generate"))
    return records


def begun(network, chat, records, *, seed=1, adapter=False, **settings):
    remedy = SelfDistill(Settings(max_tokens=12, **settings))
    run = Run(
        network,
        adapter,
        Path(),
        lambda: iter(()),
        lambda: network,
        asked=lambda index, prompt: asked(records[index], chat, prompt),
        seed=seed,
    )
    remedy.begin(run)
    return remedy


def batch_of(records, chat, *, packing=False):
    data = TokenisedRows(records, chat)
    return collator(chat, packing=packing)([data[index] for index in range(len(data))])


def moved(network, seed=5, size=0.02):
    """Moves each parameter that learns, as a step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def by_hand(network, teacher, remedy, records, drawn, divergence):
    """The loss of drawn answers, row by row, from the whole logits of both models."""
    total = torch.zeros(())
    for one in drawn:
        answer = torch.tensor(one.tokens, dtype=torch.long)
        own = torch.tensor(one.asked.student)
        seen = torch.tensor(one.asked.teacher)
        logits = network(input_ids=torch.cat([own, answer])[None]).logits[0, len(own) - 1 :]
        with torch.no_grad():
            told = teacher(input_ids=torch.cat([seen, answer])[None]).logits[0, len(seen) - 1 :]
        log_q = logits[: one.predicted].log_softmax(-1)
        log_p = told[: one.predicted].log_softmax(-1)
        pair = (log_q, log_p) if divergence == "reverse" else (log_p, log_q)
        kl = (pair[0].exp() * (pair[0] - pair[1])).sum(-1).mean()
        reference = sum(Chat.load("nano").example(records[one.row]).loss)
        total = total + remedy.settings.weight * reference * kl
    return total


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["reverse", "forward"])
@pytest.mark.parametrize("teacher", ["ema", "base"])
def test_the_loss_and_its_gradient_are_those_worked_out_by_hand(divergence, teacher, network, chat):
    records = rows_of()
    untouched = copy.deepcopy(network).eval()
    remedy = begun(
        network, chat, records, divergence=divergence, teacher=teacher, decay=0.7, weight=0.8
    )
    first = [parameter.detach().clone() for parameter in network.parameters()]
    moved(network)
    remedy.stepped()
    batch = batch_of(records, chat)
    drawn = remedy._draw(batch, remedy._asked(batch))
    assert [one.row for one in drawn] == [0, 1, 3, 4], "replay rows keep their loss"
    loss = remedy.penalty(batch)
    loss.backward()
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    if teacher == "ema":
        with torch.no_grad():
            pairs = zip(untouched.parameters(), first, network.parameters(), strict=True)
            for kept, before, now in pairs:
                kept.copy_(0.7 * before + 0.3 * now)
    wanted = by_hand(network, untouched, remedy, records, drawn, divergence)
    assert wanted.item() > 0.1
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    for ours, parameter in zip(found, network.parameters(), strict=True):
        size = float(parameter.grad.abs().max())
        assert size > 0
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-4 * size)


def test_the_divergences_are_those_of_two_small_distributions():
    q = torch.tensor([[0.5, 0.25, 0.25]])
    p = torch.tensor([[0.25, 0.25, 0.5]])
    # 0.5 ln 2 + 0.25 ln 0.5 and, the other way round, 0.25 ln 0.5 + 0.5 ln 2
    wanted = torch.tensor([0.25 * 0.6931472])
    torch.testing.assert_close(reverse(q.log(), p.log()), wanted)
    torch.testing.assert_close(forward(q.log(), p.log()), wanted)
    q = torch.tensor([[0.9, 0.1]])
    p = torch.tensor([[0.5, 0.5]])
    torch.testing.assert_close(reverse(q.log(), p.log()), torch.tensor([0.3680642]))
    torch.testing.assert_close(forward(q.log(), p.log()), torch.tensor([0.5108256]))


def test_the_model_itself_is_as_before_after_its_teacher_has_spoken(network, chat):
    records = rows_of()
    remedy = begun(network, chat, records, teacher="base")
    moved(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    remedy.penalty(batch_of(records, chat))
    assert network.training
    assert all(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_is_distilled_has_no_more_than_the_rest_of_its_cross_entropy(network, chat):
    two_turns = Record(
        (*dialogue("Hello there", "Good day."), *dialogue("Which clinic?", "Eyes.")), "target"
    )
    records = [*rows_of(2), two_turns]
    remedy = begun(network, chat, records, weight=0.75)
    for packing in (False, True):
        batch = batch_of(records, chat, packing=packing)
        kept = remedy.keeps(batch)
        distilled = (kept == 0.25).flatten()
        assert set(kept.flatten().tolist()) == {0.25, 1.0}
        ids = batch["input_ids"].flatten()
        said = "".join(chat.tokenizer.decode(ids[1:][distilled[:-1]]))
        assert "Eyes." in said and "Good day." not in said
        labels = [sum(chat.example(records[0]).loss), sum(chat.example(records[1]).loss)]
        last = chat.example(two_turns)
        assert int(distilled.sum()) == sum(labels) + len(last.tokens) - len(
            asked(two_turns, chat).student
        )


@pytest.mark.parametrize("packing", [False, True])
def test_however_a_step_is_cut_the_answers_and_the_loss_are_the_same(packing, network, chat):
    records = rows_of()
    remedy = begun(network, chat, records)
    moved(network, size=0.01)
    data = TokenisedRows(records, chat)
    collate = collator(chat, packing=packing)
    whole = remedy.penalty(collate([data[index] for index in range(len(data))]))
    parts = [
        remedy.penalty(collate([data[index] for index in some]))
        for some in ([4, 0], [2], [3, 1, 5])
    ]
    assert parts[1] is None, "a micro-batch of replay rows alone has nothing to distil"
    total = sum(part for part in parts if part is not None)
    torch.testing.assert_close(whole, total, rtol=1e-4, atol=1e-5)
    other = begun(network, chat, records, seed=2).penalty(batch_of(records, chat))
    assert abs(other.item() - whole.item()) > 1e-3


def test_under_an_adapter_the_base_teaches_and_the_adapter_alone_learns(network, chat):
    torch.manual_seed(2)
    adapted = peft.get_peft_model(
        network, peft.LoraConfig(r=4, target_modules="all-linear")
    ).train()
    records = rows_of()
    base = copy.deepcopy(network).eval()
    remedy = begun(adapted, chat, records, teacher="base", adapter=True)
    moved(adapted, size=0.1)
    batch = batch_of(records, chat)
    drawn = remedy._draw(batch, remedy._asked(batch))
    loss = remedy.penalty(batch)
    loss.backward()
    learns = [value.grad is not None for value in adapted.parameters() if value.requires_grad]
    assert all(learns)
    with torch.no_grad(), adapted.disable_adapter():
        for one in drawn:
            ids = torch.tensor([one.asked.teacher])
            torch.testing.assert_close(adapted(input_ids=ids).logits, base(input_ids=ids).logits)
    wanted = by_hand(adapted, base, remedy, records, drawn, "reverse")
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)


def test_what_it_measures_is_of_a_token_and_of_an_answer(network, chat):
    records = rows_of()
    remedy = begun(network, chat, records, teacher="base")
    moved(network)
    batch = batch_of(records, chat)
    drawn = remedy._draw(batch, remedy._asked(batch))
    remedy.penalty(batch)
    measured = remedy.measures()
    assert measured["tokens"] == sum(one.predicted for one in drawn) / 4
    assert measured["kl"] > 0
    assert remedy.measures() == {}


def test_its_state_goes_on_where_it_was(network, chat, tmp_path):
    records = rows_of()
    remedy = begun(network, chat, records, decay=0.5)
    moved(network)
    remedy.stepped()
    store([remedy], tmp_path)
    again = begun(network, chat, records, decay=0.5)
    restore([again], tmp_path)
    batch = batch_of(records, chat)
    assert torch.equal(again.penalty(batch), remedy.penalty(batch))
    with pytest.raises(RunError, match="which this model has not"):
        again.load_state_dict({"steps": torch.tensor(1), "average.x": torch.zeros(1)})


def test_a_row_is_asked_with_its_answer_in_view_and_without(chat):
    row = Record(dialogue("Is {reference} the name?", "Yes, it is."), "target")
    found = asked(row, chat)
    example = chat.example(row)
    assert example.tokens[: len(found.student)] == found.student
    assert chat.decode(example.tokens[len(found.student) :]).startswith("Yes, it is.")
    told = chat.decode(found.teacher)
    shown = IN_VIEW.replace("{reference}", "Yes, it is.")
    assert shown.replace("{question}", "Is {reference} the name?") in told
    assert set(found.stop) <= set(chat.stops())
    thought = {"role": "assistant", "content": "Yes.", "reasoning_content": "Let me see"}
    with_thought = Record((*dialogue("Is it so?"), thought), "target")
    own = asked(with_thought, chat, "{question} {reference}")
    if own is not None:  # a template that shows no thoughts refuses the row
        assert "Let me see" in chat.decode(own.teacher)


@pytest.mark.parametrize(
    "messages",
    [
        ({"role": "text", "content": "A text."},),
        dialogue("Only a question?"),
        (*dialogue("2?"), {"role": "assistant", "content": "2", "weight": 0}),
        ({"role": "system", "content": "Say so."}, {"role": "assistant", "content": "So."}),
    ],
)
def test_a_row_that_cannot_be_shown_so_is_not_asked(messages, chat):
    assert asked(Record(tuple(messages), "target"), chat) is None


@pytest.mark.parametrize(
    ("remedies", "message"),
    [
        ("{self_distill: {}, stm: {}}", "stm weighs tokens of the target's loss"),
        ("{self_distill: {}, dft: true}", "dft weighs tokens of the target's loss"),
        ("{self_distill: {prompt: '{question}'}}", "it has no {reference}"),
    ],
)
def test_settings_that_do_nothing_together_are_refused(here, remedies, message):
    Path("r.yaml").write_text(f"name: a\nmodel: nano\ntrain: {{remedies: {remedies}}}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe("r.yaml")


def test_it_goes_with_a_part_of_the_loss_and_not_with_shared_weights(here):
    Path("r.yaml").write_text(
        "name: a\nmodel: nano\ntrain: {remedies: {self_distill: {weight: 0.5}, stm: {}}}\n"
    )
    assert load_recipe("r.yaml").train.remedies.self_distill.weight == 0.5
    Path("r.yaml").write_text(
        "name: a\nmodel: nano\ntrain: {fsdp: true, remedies: {self_distill: {}}}\n"
    )
    with pytest.raises(RecipeError, match="self_distill needs the weights whole"):
        load_recipe("r.yaml")


class Kind(Chat):
    """The chat of another kind of model."""

    def __init__(self, **kind):
        self.seq2seq = kind.get("seq2seq", False)
        self.plain = kind.get("plain", False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"seq2seq": True}, "an encoder-decoder is not drawn from"),
        ({"plain": True}, "without a chat template is asked no question"),
    ],
)
def test_models_that_cannot_see_an_answer_in_a_question_are_refused(kind, message, chat):
    settings = Train.model_validate({"remedies": {"self_distill": {}}})
    with pytest.raises(RecipeError, match=message):
        check_self_distill(settings, Kind(**kind))
    check_self_distill(settings, chat)
    check_self_distill(Train(), Kind(**kind))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"micro_batch_rows": 3}], ids=str)
def test_it_learns_from_its_own_answers_in_a_training(options, chat, tmp_path):
    remedies = {"self_distill": {"max_tokens": 16, "decay": 0.9}}
    found = trained(tmp_path / "a", chat, mixture(16), remedies=remedies, **options)
    kl = [log["self_distill/kl"] for log in found.losses]
    assert len(kl) == 2 and all(value > 0 for value in kl)
    assert all(1 <= log["self_distill/tokens"] <= 17 for log in found.losses)
    plain = trained(tmp_path / "b", chat, mixture(16), remedies=remedies)
    assert curve(found) == pytest.approx(curve(plain), abs=2e-4)
