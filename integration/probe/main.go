package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1 // a single verb got an errno
	exitUsage   = 2
	exitRefused = 3 // this is not a root that a test made
)

// firstThread is closed to end the first thread.
var firstThread = make(chan struct{})

func init() { goruntime.LockOSThread() } // main has the first thread to itself

func main() {
	go func() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout)) }()
	<-firstThread
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

func run(args []string, in io.Reader, out io.Writer) int {
	if err := atHome(); err != nil {
		fmt.Fprintln(out, "refused", err)
		return exitRefused
	}
	switch {
	case len(args) == 0:
		fmt.Fprintln(out, "usage: probe serve | VERB [ARG...]; verbs:", slices.Sorted(maps.Keys(verbs)))
		return exitUsage
	case args[0] == "serve":
		for lines := bufio.NewScanner(in); lines.Scan(); {
			words, err := split(lines.Text())
			if err != nil {
				fmt.Fprintln(out, "error", err)
				continue
			}
			fmt.Fprintln(out, answer(words))
		}
		return exitOK
	}
	said := answer(args)
	fmt.Fprintln(out, said)
	if !strings.HasPrefix(said, "ok") {
		return exitFailed
	}
	return exitOK
}

// marker lies in every root that a test makes: a symbolic link whose target is
// the test's own mount namespace. Landlock leaves readlink(2) alone, so it can
// be read where nothing else can.
const marker = "/.nemoclaw-test-root"

// atHome reports why this is not a test's root, seen from a mount namespace
// other than the test's.
func atHome() error {
	tester, err := os.Readlink(marker)
	if err != nil {
		return fmt.Errorf("to run: %s is not there", marker)
	}
	here, err := os.Readlink("/proc/self/ns/mnt")
	if err == nil && here == tester {
		return errors.New("to run: this is the mount namespace of the tests themselves")
	}
	return nil
}

// verb tries one thing.
type verb func(args []string) (string, error)

// answer runs one verb on a thread of its own that ends with it, so that what
// it does to its thread stays without consequence.
func answer(words []string) string {
	if len(words) == 0 {
		return "error there is no verb"
	}
	do, ok := verbs[words[0]]
	if !ok {
		return "error there is no verb " + words[0]
	}
	said := make(chan string, 1)
	go func() {
		goruntime.LockOSThread()
		defer func() {
			if p := recover(); p != nil {
				said <- fmt.Sprint("error ", words[0], " takes other arguments: ", p)
			}
		}()
		said <- line(do(words[1:]))
	}()
	return <-said
}

// line is the outcome of a verb in one line.
func line(got string, err error) string {
	var errno syscall.Errno
	var said verbatim
	switch {
	case errors.As(err, &said):
		return printable(string(said))
	case err == nil && got == "":
		return "ok"
	case err == nil:
		return "ok " + printable(got)
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "TIMEOUT"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return "error " + printable(err.Error())
}

// printable keeps a line one line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, s)
}

// split cuts a line into words.
func split(line string) ([]string, error) {
	var words []string
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
		if rest[0] == '"' {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return nil, err
			}
			word, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, err
			}
			words, rest = append(words, word), rest[len(quoted):]
			continue
		}
		word, after, _ := strings.Cut(rest, " ")
		words, rest = append(words, word), after
	}
	return words, nil
}

// number reads a decimal, octal (0o) or hexadecimal (0x) argument; -1 is all
// bits.
func number(s string) uintptr {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		u, uerr := strconv.ParseUint(s, 0, 64)
		if uerr != nil {
			panic(err)
		}
		return uintptr(u)
	}
	return uintptr(n)
}

var verbs map[string]verb

func init() { // the table refers to functions that refer to the table
	verbs = map[string]verb{}
	for _, group := range []map[string]verb{fileVerbs, programVerbs, processVerbs, networkVerbs, floodVerbs, kernelVerbs, surveyVerbs} {
		enlist(group)
	}
}

// enlist adds verbs to the table. Two of one name would be one that never runs.
func enlist(group map[string]verb) {
	for name, do := range group {
		if verbs[name] != nil {
			panic("two verbs are called " + name)
		}
		verbs[name] = do
	}
}
