#![no_main]
tetrachord_fuzz::fuzz!("console");
