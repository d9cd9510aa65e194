// Command mutate asks of every entry of the lists that confine a sandbox whether
// a test would notice if it were gone: each denial, default rule, guarded place,
// right and refusal is taken out in turn and the fast tests are run. It changes no
// file: go test reads the mutant in place of the original (-overlay). What
// survives is printed, and then it fails.
//
//	make mutate                            # all
//	make mutate MUTATE='-only guard -v'    # those whose name holds "guard"
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Exit statuses.
const (
	exitOK        = 0
	exitSurvivors = 1
	exitFailed    = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("mutate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "mutants whose name holds this")
	verbose := flags.Bool("v", false, "print every mutant")
	jobs := flags.Int("j", 2, "how many at a time")
	if flags.Parse(args) != nil {
		return exitFailed
	}
	var all []mutant
	for _, s := range sources {
		found, err := s.mutants()
		if err != nil {
			fmt.Fprintln(stderr, "mutate:", err)
			return exitFailed
		}
		all = append(all, found...)
	}
	var chosen []mutant
	for _, m := range all {
		if strings.Contains(m.String(), *only) {
			chosen = append(chosen, m)
		}
	}
	survivors, err := hunt(chosen, *jobs, func(m mutant, what string) {
		if *verbose || what != killed {
			fmt.Fprintf(stdout, "%s: %v\n", what, m)
		}
	})
	if err != nil {
		fmt.Fprintln(stderr, "mutate:", err)
		return exitFailed
	}
	fmt.Fprintf(stdout, "%d entries taken out in turn, %d not noticed by any test\n", len(chosen), survivors)
	if survivors > 0 {
		return exitSurvivors
	}
	return exitOK
}

// What became of a mutant.
const (
	killed   = "noticed"
	survived = "not noticed"
)

// hunt runs the tests of every mutant, jobs at a time, and returns how many
// survived. The tests must pass on the tree as it is, and a mutant must compile:
// else nothing was shown.
func hunt(mutants []mutant, jobs int, tell func(mutant, string)) (survivors int, err error) {
	scratch, err := os.MkdirTemp("", "nemoclaw-mutate-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	for _, tests := range testsOf(mutants) {
		if passed, out, err := test(tests, ""); err != nil || !passed {
			return 0, errors.Join(err, fmt.Errorf("the tests of %s fail without a mutant:\n%s", strings.Join(tests, " "), out))
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan int)
	for range jobs {
		wg.Go(func() {
			for i := range next {
				alive, oneErr := mutants[i].lives(filepath.Join(scratch, fmt.Sprint(i)))
				mu.Lock()
				what := killed
				if alive {
					what = survived
					survivors++
				}
				if oneErr != nil {
					err = errors.Join(err, fmt.Errorf("%v: %w", mutants[i], oneErr))
				} else {
					tell(mutants[i], what)
				}
				mu.Unlock()
			}
		})
	}
	for i := range mutants {
		next <- i
	}
	close(next)
	wg.Wait()
	return survivors, err
}

func testsOf(mutants []mutant) [][]string {
	var all [][]string
	seen := map[string]bool{}
	for _, m := range mutants {
		if key := strings.Join(m.tests, " "); !seen[key] {
			seen[key] = true
			all = append(all, m.tests)
		}
	}
	return all
}

// lives reports whether the tests pass with the mutant in place of the original.
func (m mutant) lives(dir string) (bool, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return false, err
	}
	changed, overlay := filepath.Join(dir, filepath.Base(m.file)), filepath.Join(dir, "overlay.json")
	original, err := filepath.Abs(m.file)
	if err != nil {
		return false, err
	}
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return false, err
	}
	if err := errors.Join(os.WriteFile(changed, m.source, 0o600), os.WriteFile(overlay, text, 0o600)); err != nil {
		return false, err
	}
	passed, out, err := test(m.tests, overlay)
	// A test that does not compile any more has noticed.
	if err == nil && !passed && strings.Contains(out, "[build failed]") && !strings.Contains(out, "_test.go:") {
		err = fmt.Errorf("it does not compile:\n%s", out)
	}
	return passed, err
}

// test runs the fast tests of packages: without those that only compare the data
// with a document made of them.
func test(packages []string, overlay string) (passed bool, out string, err error) {
	args := []string{"test", "-count=1", "-failfast", "-skip", "^TestDocument$|^Fuzz"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := cmd.CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); failed {
		err = nil
	} else {
		passed = err == nil
	}
	return passed, string(text), err
}
