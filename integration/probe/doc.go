// Command probe is the attacker of the integration tests: it runs inside a
// sandbox, tries what it is told to try, and says what the kernel answered. It
// judges nothing, and it refuses to run anywhere but in a root that a test
// made: what it attacks must be nobody's.
//
//	probe serve             a verb and its arguments on each line of stdin
//	probe VERB [ARG...]     one verb
//
// Each verb is answered by one line: "ok" and what was got, or the name of the
// errno, or "error" and a sentence. Words are separated by spaces; a word with
// spaces is quoted as in Go.
package main
