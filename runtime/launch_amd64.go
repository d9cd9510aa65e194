package runtime

import _ "embed"

// launcher is cmd/nemoclaw-launch, built by the Makefile.
//
//go:embed launch_amd64.bin
var launcher []byte
