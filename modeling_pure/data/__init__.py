"""From the files of a recipe to the batches of a run, exact in tokens and resumable at every sequence.

1. Files -> shards. `opening` finds the files of every source (`modeling_pure.files`) and cuts them into `shards`: a
   file, or a range of bytes of a large file of lines. `remote` reads them, from disk or over a network that fails now
   and then.
2. Shards -> documents. `decoders` turn a shard into records, each a text or the fault that makes it unusable.
   `source_records` puts the records of a source into an order of its own in every epoch, or writes the questions of a
   MedQA source as exam text. `documents` gives each worker its share of them. A worker is one data-loader worker of
   one rank; its index is rank x data-loader workers + its number. Validation documents (`validation`) and documents
   that hold an evaluation question (`medqa.decontamination`) are left out.
3. Documents -> packed sequences. `packing` tokenizes a window of documents, ends each with the end-of-text token,
   joins them and cuts sequences of `max_seq_length` tokens. No token is dropped: what is left of a window begins the
   next sequence. This is where a token of a document becomes a token of a sequence:
   `PackedSequences.next_sequence`.
4. Sequences -> mixture. `mixture` draws each sequence from the source whose share is due next (`schedule`), or
   `pretokenized` reads sequences that were written in that order before.
5. Mixture -> batches. `mixture.collate_sequences` stacks the sequences of a micro-batch, in the `DataLoader` of
   `training.trainer`: here they become tokens of a batch.

Every sequence carries the state that follows it (`states`), and a batch that of its last sequence, so the position of
a run is that of the last batch it trained on, whatever its workers have read ahead. The state of a worker holds, for
each source, the place where its window of documents began, the tokens left over from before, and how many sequences it
has drawn since. With the same number of ranks and workers a run resumes with the same sequences as if it had not
stopped. With another number, every record that a former worker had not reached is read once by one of the new workers,
and the last window of each former worker is read again.

`training_data` opens all of it for a training script.
"""
