"""From the files of a recipe to the batches of a run: exact in tokens, and resumable at every sequence.

1. Files -> shards. `opening` finds the files of every source (`modeling_pure.files`) and cuts them into `shards`: a
   file, or a byte range of a large file of lines. `remote` reads them, from disk or over an unreliable network.
2. Shards -> documents. `decoders` turn a shard into records, each a text or the fault that makes it unusable.
   `source_records` shuffles the records of a source differently in every epoch, or writes the questions of a MedQA
   source as exam text. `documents` gives each worker its share of them. A worker is one data-loader worker of one
   rank; its index is rank x data-loader workers + its number. Validation documents (`validation`) and documents that
   contain an evaluation question (`medqa.decontamination`) are left out.
3. Documents -> packed sequences. `packing` tokenizes a window of documents, ends each with the end-of-text token,
   joins them and cuts sequences of `max_seq_length` tokens. No token is dropped: the rest of a window begins the next
   sequence. This is where a token of a document becomes a token of a sequence: `PackedSequences.next_sequence`.
4. Sequences -> mixture. `mixture` draws each sequence from the source whose share is due next (`schedule`), or
   `pretokenized` reads sequences that were written earlier, in that order.
5. Mixture -> batches. `mixture.collate_sequences` stacks the sequences of a micro-batch, in the `DataLoader` of
   `training.trainer`.

Every sequence carries the state that follows it (`states`), and a batch carries the state of its last sequence. So the
position of a run is that of its last batch, however far the workers have read ahead. For each source, the state of a
worker holds the start of its window of documents, the tokens left over from the window before, and the number of
sequences drawn since. With the same number of ranks and workers, a resumed run continues with exactly the same
sequences. With another number, every record that no worker had reached is read once, and the last window of each
former worker is read again.

`training_data` opens all of it for a training script.
"""
