//! What the compiler says about `#[cached]`: one file per mistake, named after it, with the message it must give.

#[test]
fn every_mistake_has_a_message_that_says_what_to_do() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/fail/*.rs");
}
