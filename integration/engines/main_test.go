package engines

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// stageEnv tells the three lives of the test binary apart.
const stageEnv = "NEMOCLAW_ENGINES_STAGE"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv("NEMOCLAW_ENGINES") == "":
		os.Exit(m.Run()) // every test skips
	case os.Getenv(stageEnv) == "init":
		os.Exit(beInit())
	case os.Getenv(stageEnv) == "tests":
		os.Exit(inside(m))
	}
	os.Exit(outside())
}

// outside prepares what takes a network, and runs the tests in a throw-away
// host.
func outside() int {
	if os.Geteuid() != 0 {
		return missing("engines take root")
	}
	cache, err := fetch()
	if err != nil {
		return missing(err.Error())
	}
	code, err := runHost(cache)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// missing skips everything, and fails where CI promised what is missing.
func missing(why string) int {
	if os.Getenv("CI") == "true" {
		fmt.Fprintln(os.Stderr, "FAIL:", why)
		return 1
	}
	fmt.Fprintln(os.Stderr, "SKIP:", why)
	return 0
}

// repository is the root of the source tree; tests run in their package's
// directory.
func repository() string {
	root, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return root
}
