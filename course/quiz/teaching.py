"""Questions about lessons 06 to 10: features, relations, a whole job, its judgement, and the choice of a teacher."""

from __future__ import annotations

from course.quiz.question import QuizQuestion, right, wrong

TEACHING = (
    QuizQuestion(
        "06",
        "projection",
        "Step 2, first answer: a hint",
        "Teacher and student have maps of the same size and the same number of channels. Why does a hint still use a "
        "projection?",
        (
            wrong(
                "Without it the gradient of the hint would change the teacher.",
                "The teacher gets no gradient in any case: its maps are taken as they are.",
            ),
            wrong(
                "It stays in the student and gives it the capacity that it lacks.",
                "It is thrown away after the training. The student is as small as before.",
            ),
            wrong(
                "It averages the maps down to one number for each picture.",
                "A 1 x 1 convolution leaves height and width alone. It mixes channels.",
            ),
            right(
                "Channels have no natural order, and it can learn to translate.",
                "A student that knows the same in another order would be called wrong without it.",
            ),
        ),
    ),
    QuizQuestion(
        "06",
        "whisper",
        "Step 2, second answer: where to look",
        "An attention loss with weight 1 is added to the cross-entropy and changes nothing that can be seen. "
        "What is the first thing to look at?",
        (
            wrong(
                "Whether the projection of the maps was given to the optimiser",
                "Attention transfer has no projection: the channels are averaged away.",
            ),
            right(
                "How large the term can become at all, beside the cross-entropy",
                "Two maps of length 1 differ little at each position, so its weight is large: 42 by our trials.",
            ),
            wrong(
                "Whether both networks have the same number of channels there",
                "They need not: the mean over the channels takes them away.",
            ),
            wrong(
                "How many heads the attention of the two networks has",
                "These maps have nothing to do with the attention of transformers.",
            ),
        ),
    ),
    QuizQuestion(
        "07",
        "needs_labels",
        "Step 3: joint training",
        "Why does a loss on relations between pictures need labels or logits beside it, if the student is to classify?",
        (
            right(
                "It says what is alike, and never which class is which.",
                "It reaches the layers before the classifier. The classifier at the end learns nothing from it.",
            ),
            wrong(
                "It has no gradient, because distances have no derivative.",
                "They have one: the loss trains the layers that it looks at.",
            ),
            wrong(
                "It is zero until the student knows most of the labels.",
                "It is largest at the beginning, when the student finds nearly all pictures alike.",
            ),
            wrong(
                "It relates two pictures, while a batch has more of them.",
                "It relates all pairs of a batch, or all triples.",
            ),
        ),
    ),
    QuizQuestion(
        "07",
        "nearer",
        "Is the nearer student the better one?",
        "A student was taught a relation. On new pictures it is five times nearer to the teacher's than its "
        "twin is, and it is right less often. What follows?",
        (
            wrong(
                "The code has a mistake: whoever is nearer must be right more often.",
                "Not so. A relation is a narrow window, and much lies outside of it.",
            ),
            wrong(
                "The twin was lucky, and will fall behind with any other seed.",
                "It might, but nothing here says so. That takes several seeds.",
            ),
            right(
                "The loss did its work, and nearer was not better here.",
                "Whether a relation was learned, and whether it helped, are two questions with two measurements.",
            ),
            wrong(
                "The teacher's relation is wrong and should not be copied by anyone.",
                "It belongs to a teacher that answers well. Copying it alone does not make one answer well.",
            ),
        ),
    ),
    QuizQuestion(
        "08",
        "paired",
        "Ten seeds",
        "Students of one seed share pictures, order and initial weights. Why is the gain taken seed by seed, "
        "before the mean is formed?",
        (
            wrong(
                "The mean of the differences is larger than the difference of the means.",
                "The two are the same number. What differs is how well it is known.",
            ),
            right(
                "What makes a seed hard for both methods drops out of the difference.",
                "So the differences scatter less, as a rule, than those of unrelated seeds would (in this course's "
                "rows by 11 % in the median), and the interval is narrower.",
            ),
            wrong(
                "It makes twenty independent runs of ten, and so a narrower interval.",
                "There are ten pairs. Pairing adds no run.",
            ),
            wrong(
                "A single difference is then enough, and no interval has to be given.",
                "One pair says nothing about the spread of the next.",
            ),
        ),
    ),
    QuizQuestion(
        "08",
        "shuffled",
        "Controls",
        "In an experiment, a teacher that answers for other pictures gains as much over hard labels as the real "
        "one. What was shown?",
        (
            wrong(
                "The teacher is so good that it helps with any of its answers.",
                "Its answer for another picture says nothing about this one, however good it is.",
            ),
            wrong(
                "The script is wrong, because such a teacher cannot gain anything.",
                "It can, as a kind of label smoothing, which softens targets and knows no picture.",
            ),
            wrong(
                "The student is too small for the knowledge of the real teacher.",
                "That would leave the real teacher without a gain. Here both have one.",
            ),
            right(
                "It is not shown that the gain comes from what a teacher knows of a picture.",
                "Softer or disturbed targets alone gain as much. That the real teacher's gain is of another kind would "
                "have to be shown.",
            ),
        ),
    ),
    QuizQuestion(
        "09",
        "networks_or_methods",
        "Two methods",
        "One student of method A and one of method B are compared on the same test pictures. McNemar's test "
        "gives a very small p. What may you say?",
        (
            wrong(
                "Method A is better than B for this student and these data.",
                "The test has seen one network of each. It does not know how much of the gap is the seed's.",
            ),
            wrong(
                "With another seed, A would win again almost certainly.",
                "Students of one and the same method are found different by this test far too often for that.",
            ),
            right(
                "These two networks differ on pictures such as these.",
                "That is what one needs to know before shipping one of them, and all that the test was asked.",
            ),
            wrong(
                "Nothing, because the two did not see the same pictures.",
                "They did, and pairing by picture is what makes the test sharp.",
            ),
        ),
    ),
    QuizQuestion(
        "09",
        "nineteen",
        "Many methods",
        "Nineteen methods are compared with hard labels, each by an interval of 95 % of its own. One of the intervals "
        "leaves out zero. Why is this no verdict yet?",
        (
            right(
                "With nineteen chances, one such interval is no surprise where nothing gains.",
                "Hence Bonferroni: wider intervals, of which all hold together with 95 %.",
            ),
            wrong(
                "An interval says nothing until it is confirmed with the same seeds again.",
                "The same seeds give the same numbers. Fresh ones would tell.",
            ),
            wrong(
                "The other eighteen gained nothing, which makes that one less likely, too.",
                "Methods may differ. It is the number of looks that weakens a single find.",
            ),
            wrong(
                "An interval of 95 % is too narrow: in science one asks for 99 %.",
                "The level is a choice. What matters is that it holds for all that was looked at.",
            ),
        ),
    ),
    QuizQuestion(
        "10",
        "not_equal",
        "Does it matter which?",
        "Two teachers, one far larger, are compared by the same student over five paired seeds. The interval of the "
        "difference reaches from a point below zero to a point above. What do you report?",
        (
            wrong(
                "The two teach equally well, so the larger one is a waste.",
                "INCONCLUSIVE is not equal: half a point to either side would fit these seeds as well.",
            ),
            right(
                "No difference is shown, and up to a point is not excluded.",
                "That is what the interval says. More seeds would make it narrower.",
            ),
            wrong(
                "Each is better for some seeds, so both should teach together.",
                "That single seeds point both ways is what chance does. It is no advice.",
            ),
            wrong(
                "There is a capacity gap, since the larger one gained no more.",
                "A gap is a loss by the larger teacher, and none is shown.",
            ),
        ),
    ),
    QuizQuestion(
        "10",
        "one_makes_an_order",
        "An order, as a number",
        "Among several teachers, the students' gains follow a measure of the teacher, with an interval of "
        "Kendall's tau above zero. Without the one bad teacher the interval holds zero. What was learned?",
        (
            wrong(
                "The measure orders all teachers, and the bad one was a nuisance.",
                "It is the other way round: without it, no order is left that the seeds agree on.",
            ),
            wrong(
                "The bad teacher should have been left out before the analysis.",
                "It is a fact like the others. What is wrong is to let it speak for all.",
            ),
            wrong(
                "Tau was the wrong number, and a correlation would be right here.",
                "A correlation follows a single far point even more willingly.",
            ),
            right(
                "The measure finds the bad one, and no order of the others is shown.",
                "One teacher can make an order. Among the good ones no order is shown.",
            ),
        ),
    ),
)
