// Package integration attacks nemoclaw from the outside and from the inside:
// what needs root, a kernel and real programs is tested here, beginning with
// the laws of THREAT_MODEL.md, one test each. It imports nothing of nemoclaw's
// own but its test internet: it knows what a user knows, the built programs,
// their files and their words.
//
// The tests need root and "make build". NEMOCLAW_TEST_BIN names another
// directory of programs. A test whose requirement is missing skips and says
// why; with CI=true it fails.
package integration
