package escape

import (
	"fmt"
	"strings"
)

// Attempt is one way out that somebody found, or that a manual page suggests.
type Attempt struct {
	Name   string
	Source string // a CVE, a kernel self-test, a manual page, a peer's fault
	// Do is verbs of the probe, separated by "; ". Their answer is that of the
	// first which is not ok, or of the last.
	Do string
	// Want is how the answer begins in a sandbox, as root and as uid 1000;
	// several, separated by |, where the kernel's own checks come first.
	Want string
	// Proof is how the answer begins under runc, with Docker's capabilities or
	// with all: the attempt works there, or reaches the kernel, which says what
	// it thinks of meaningless arguments. After "+ " come verbs instead that
	// must be answered ok in the same sandbox: what was refused is not the
	// whole kind.
	Proof string
}

// Group is attempts of one kind. Each begins with its neighbours that must work,
// or everything might be refused for another reason.
type Group struct {
	Name     string
	Controls []string // verbs, each answered ok in a sandbox
	Attempts []Attempt
}

// Words in verbs stand for files that are an attempt's own, so that what one
// destroys under runc the next still finds.
const (
	Secrets = "/root/secrets" // SECRET is a file in it, not granted
	Texts   = "/usr/share/t"  // TEXT is a file in it, DIR a directory; may be read
)

// Verbs returns the verbs of do for the attempt of number n, tried by who, with
// another process of the container in place of OTHER.
func Verbs(do string, n int, who, other string) []string {
	return strings.Split(strings.NewReplacer(
		"SECRET", fmt.Sprintf("%s/%d", Secrets, n), "TEXT", fmt.Sprintf("%s/%d", Texts, n), "DIR", fmt.Sprintf("%s/d%d", Texts, n),
		"OWN", fmt.Sprintf("/tmp/own-%s-%d", who, n), "OTHER", other).Replace(do), "; ")
}

// Fits reports whether answer begins with one of the alternatives of want.
func Fits(answer, want string) bool {
	for w := range strings.SplitSeq(want, "|") {
		if strings.HasPrefix(answer, w) {
			return true
		}
	}
	return false
}

// Groups is all of them.
var Groups = []Group{reading, writing, linking, mounting, executing, entering, meddling, devices, talking, calling, auditing, habits}
