// Package policy reads the policy file, says what is wrong with it, and
// answers what it allows. It opens no files, dials nothing, looks up no name
// and knows no OCI: bytes go in, a Policy, a Verdict or positioned faults
// come out.
//
// # The file
//
// Every key may be left out. A key that is absent has its built-in default; a
// key that is present replaces that default whole. Two things differ: what is
// Essential is granted in any case, since no program runs without it, and a
// reload (ParseReload) insists on egress.rules, so that a file saved half
// written does not bring the built-in rules back. A key with nothing after it
// is a fault, not a default.
//
// # Which rule decides
//
// A deny rule beats every other. Of the rules that allow, the exact host comes
// before wildcards, of these the one with the longest literal part first, "*."
// (one label) before "**." (one or more) for the same part; neither matches
// the bare name. A rule that does not list the port, or that has expired, is
// as if it were not written, and so is one whose binaries are others than the
// program that asks. Of equals the one written first decides. cidr rules match
// connections that a program makes to an address, without a name.
//
// "enforce: audit" tries a rule out. A deny rule that has it refuses nothing. A
// rule that allows with it decides only where no other does; its limits hold.
// For all of egress it lets pass what no rule names. Each time the verdict says
// for what the connection would be refused otherwise.
//
// # Why
//
// The file is walked as YAML nodes and not decoded into structures: decoding
// drops unknown keys or reports them without a column, takes an empty value
// for a default, and stops at the first fault.
//
// Merge keys (<<) are refused: with them a rule would mean something that is
// not written where it stands. Anchors and aliases are fine.
//
// Additions by program (AddRule) are cut into the text and never re-encoded: a
// person's file keeps its comments and its layout. The result is parsed and
// compared, so that the cutting may be simple and need not be trusted.
package policy
