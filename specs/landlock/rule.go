package landlock

import "fmt"

// Rule grants Access to everything beneath Path, an absolute path inside the
// container, or to Path itself if it is no directory.
type Rule struct {
	Path   string `json:"path"`
	Access Access `json:"access"`
	// Optional rules are left out where there is no such path: the lists are
	// the same for every image. A path that a person wrote must exist.
	Optional bool `json:"optional,omitempty"`
	// Mount says that the path must be the root of a mount: it is a volume,
	// granted as the engine mounted it and not what lies under it.
	Mount bool `json:"mount,omitempty"`
	// Dev and Ino identify a bind mount; both are 0 for a tmpfs.
	Dev uint64 `json:"dev,omitempty"`
	Ino uint64 `json:"ino,omitempty"`
	// Rdev is the number of a device node; 0: any.
	Rdev uint64 `json:"rdev,omitempty"`
	// Make is a directory that is made where it is missing.
	Make bool `json:"make,omitempty"`
	// Implied rules follow from the image and not from what a person wrote.
	Implied bool `json:"implied,omitempty"`
	// Why is the rule's origin, for people: "policy.yaml:4", "image", "volume".
	Why string `json:"why"`
}

// String prints the rule as check and errors show it.
func (r Rule) String() string { return fmt.Sprintf("%s %v (%s)", r.Path, r.Access, r.Why) }

// Granted is a rule as it was added to the ruleset: the canonical name of what
// was opened, and its identity at that time.
type Granted struct {
	Path   string `json:"path"`
	Access Access `json:"access"` // after rights that the kernel or the file does not have were taken out
	Why    string `json:"why"`
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
}
