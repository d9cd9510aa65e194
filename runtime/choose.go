package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/policy"
	"nemoclaw/specs/settings"
)

// PolicyAnnotation is the annotation by which a container chooses a policy,
// among those that config.yaml lists under selectable.
const PolicyAnnotation = "io.nemoclaw.policy"

// builtIn names the policy that needs no file.
const builtIn = "built-in"

// unconfined names the policy that turns everything off.
const unconfined = "unconfined"

// Chosen is the policy of one container and where it came from.
type Chosen struct {
	*policy.Policy
	Name   string // as chosen
	Path   string // absolute and watched; empty for the built-in ones
	Source []byte
}

// ChoosePolicy returns the policy of a container: named (a name or a path, from
// the command line), else its annotation, else the host's, else the built-in.
// Nothing that an image says takes part.
func ChoosePolicy(named string, spec *oci.Spec, s *settings.Settings) (*Chosen, error) {
	if named != "" {
		return chooseNamed(named, s)
	}
	if name, ok := spec.Annotations[PolicyAnnotation]; ok {
		if !slices.Contains(s.Selectable, name) {
			return nil, &hinted{
				fmt.Errorf("cannot choose policy %q: the annotation %s may not name it", name, PolicyAnnotation),
				fmt.Sprintf("list it under selectable: in %s to let containers choose it", settings.File)}
		}
		return readPolicy(name, s.NamedPolicy(name))
	}
	chosen, err := readPolicy(s.Policy, s.Policy)
	if errors.Is(err, fs.ErrNotExist) {
		return chooseBuiltIn()
	}
	return chosen, err
}

func chooseNamed(name string, s *settings.Settings) (*Chosen, error) {
	switch {
	case name == builtIn:
		return chooseBuiltIn()
	case name == unconfined && !s.AllowUnconfined:
		return nil, &hinted{errors.New("cannot choose policy \"unconfined\": it turns every layer off"),
			"for conformance tests only: allow_unconfined: true in " + settings.File}
	case name == unconfined:
		return &Chosen{Policy: policy.Unconfined(), Name: unconfined}, nil
	case strings.Contains(name, "/"):
		abs, err := filepath.Abs(name)
		if err != nil {
			return nil, err
		}
		return readPolicy(name, abs)
	case !settings.IsName(name):
		return nil, fmt.Errorf("cannot choose policy %q: it is neither a name nor a path", name)
	}
	return readPolicy(name, s.NamedPolicy(name))
}

func chooseBuiltIn() (*Chosen, error) {
	src := policy.DefaultSource()
	p, err := policy.Parse("", src)
	if err != nil {
		return nil, fmt.Errorf("cannot use the built-in policy: %w", err)
	}
	return &Chosen{Policy: p, Name: builtIn, Source: src}, nil
}

func readPolicy(name, file string) (*Chosen, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, &unreadable{file, err}
	}
	p, err := policy.Parse(file, src)
	if err != nil {
		return nil, fmt.Errorf("cannot use policy %s:\n%w", name, err)
	}
	return &Chosen{Policy: p, Name: name, Path: file, Source: src}, nil
}

// unreadable says that a policy cannot be read without the words that Docker
// takes for a missing program.
type unreadable struct {
	file string
	err  error
}

func (u *unreadable) Error() string {
	why := "it cannot be opened"
	switch {
	case errors.Is(u.err, fs.ErrNotExist):
		why = "there is no such policy"
	case errors.Is(u.err, fs.ErrPermission):
		why = "it may not be read"
	}
	return fmt.Sprintf("cannot use policy %s: %s", u.file, why)
}

func (u *unreadable) Unwrap() error { return u.err }

// hinted is an error with advice; the command prints it on a line of its own.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint returns the advice that err carries, or "".
func Hint(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	return ""
}
