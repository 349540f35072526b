"""Look inside GPT-1 and T5: continuations, next words, vectors, attention, surprisal, answers with scores.

    model, encoder = load_gpt("model/")                    # or load_t5; a folder, or a name on the Hub
    model, encoder, class_names, _ = load_finetuned("save/NAME")   # of train.py or train_t5.py; see predict.py
    continue_texts(model, encoder, ["The cat sat on"], n_tokens=20)
    next_words(model, encoder, ["The cat sat on"])
    surprisal(model, encoder, ["The cat sat on the mat."])
    sentence_vectors(model, encoder, ["A cat sat.", "A dog ran."])

    texts = batch(model, encoder, ["A cat sat.", "A dog ran away."])
    hidden_states(model, texts), attention(model, texts), token_log_probs(model, texts)

The functions run the papers' text, model_pytorch.py and t5_pytorch.py, and read what passes through its modules.
Nothing is dropped, whatever the model's mode, which stays as it was; there are no gradients. Padding stands on the
right and changes nothing. analysis.py draws what they return.

Letters in the shape comments: those of model_pytorch.py and t5_pytorch.py, and l layers.
"""

from explore.batches import Batch, batch, batch_of_ids
from explore.continuations import answers, continue_batch, continue_texts
from explore.models import load_gpt, load_t5
from explore.probabilities import next_words, surprisal, token_log_probs
from explore.vectors import T5States, hidden_states, means, sentence_vectors, similarities
from explore.weights import T5Attention, attention
from training.finetuned import Finetuned, load_finetuned

__all__ = ["Batch", "Finetuned", "T5Attention", "T5States", "answers", "attention", "batch", "batch_of_ids",
           "continue_batch", "continue_texts", "hidden_states", "load_finetuned", "load_gpt", "load_t5", "means",
           "next_words", "sentence_vectors", "similarities", "surprisal", "token_log_probs"]
