"""From closed periods to invoices: their life, credit, credit notes, documents, exports, proof."""
