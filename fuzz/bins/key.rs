#![no_main]
tetrachord_fuzz::fuzz!("key");
